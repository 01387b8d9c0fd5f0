//! Where a request to the outside goes, and what it looks like on the wire.

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use crate::error::{Error, Result};
use crate::http::Request;
use crate::socket::bad_argument;

/// A host and a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// Takes the target out of a request's URL, of this scheme, and leaves what is sent: the path,
    /// and `Host` if it is not there.
    ///
    /// Errors: `bad-argument`: the URL has no host, another scheme, or a user.
    pub(super) fn take<B>(request: &mut Request<B>, scheme: &str) -> Result<Self> {
        let uri = request.uri();
        let refuse = |why: &str| -> Error { bad_argument(format!("{uri}: {why}")) };
        match uri.scheme_str() {
            Some(own) if own == scheme => {}
            Some("https" | "wss") => {
                return Err(refuse("there is no TLS to the outside; a proxy of yours can add it"));
            }
            _ => return Err(refuse(&format!("a URL that begins with {scheme}:// is needed"))),
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| refuse("a host is needed"))?.clone();
        if authority.as_str().contains('@') {
            return Err(refuse("a user in a URL is not sent; use the header Authorization"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80,
            port => port
                .and_then(|port| port.strip_prefix(':')?.parse().ok())
                .ok_or_else(|| refuse("this is no port"))?,
        };
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.map_err(|_| refuse("this is no host"))?;
        let path = uri.path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
        request.headers_mut().entry(HOST).or_insert(host);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(url: &str) -> Result<(Target, String, String)> {
        let mut request = Request::get(url).body(()).unwrap();
        let target = Target::take(&mut request, "http")?;
        let host = request.headers()[HOST].to_str().unwrap().to_owned();
        Ok((target, request.uri().to_string(), host))
    }

    #[test]
    fn a_url_names_a_host_a_port_and_what_is_sent() {
        for (url, host, port, path, header) in [
            ("http://a.example/b?c=d", "a.example", 80, "/b?c=d", "a.example"),
            ("http://a.example:8080", "a.example", 8080, "/", "a.example:8080"),
            ("http://[::1]:99/", "::1", 99, "/", "[::1]:99"),
        ] {
            let target = Target { host: host.to_owned(), port };
            assert_eq!(take(url).unwrap(), (target, path.to_owned(), header.to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_of_the_scheme_is_refused() {
        for url in
            ["/path", "https://a/", "ftp://a/", "http://u:p@a/", "http://a:99999/", "http://a:/"]
        {
            let error = take(url).unwrap_err();
            assert_eq!(error.code(), Some("bad-argument"), "{url}: {error}");
        }
    }
}
