# The original server with the objects of worker.js: a key-value class, kept on the local disk. Address and
# directory are told on the command line.

using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .subject),
    (name = "data", disk = (writable = true)),
  ],
  sockets = [(name = "http", http = (), service = "main")],
);

const subject :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-11-01",
  bindings = [(name = "objects", durableObjectNamespace = "Subject")],
  durableObjectNamespaces = [(className = "Subject", uniqueKey = "subject")],
  durableObjectStorage = (localDisk = "data"),
);
