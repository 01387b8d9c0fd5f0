//! WebSockets: messages that come back, and sockets whose objects sleep.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tungstenite::{Message, WebSocket};

use crate::Result;
use crate::objects::NAMESPACE;

/// A message that does not come back within this time fails the run.
const ECHO_TIME: Duration = Duration::from_secs(10);

/// A client's end.
pub(crate) type Client = WebSocket<TcpStream>;

/// Opens a socket to the object of this name.
pub(crate) fn open(address: SocketAddr, name: &str) -> Result<Client> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ECHO_TIME))?;
    let url = format!("ws://{address}/{NAMESPACE}/{name}/echo");
    let (client, _) = tungstenite::client(url, stream).map_err(|error| error.to_string())?;
    Ok(client)
}

fn echo(client: &mut Client, text: &str) -> Result<()> {
    client.send(Message::text(text))?;
    loop {
        match client.read()? {
            Message::Text(back) if back.as_str() == text => return Ok(()),
            Message::Ping(_) | Message::Pong(_) => {}
            other => return Err(format!("{other:?} came in place of {text}").into()),
        }
    }
}

/// Sends a message and waits for it, again and again; the times of each after a warm-up.
pub(crate) fn echoes(
    address: SocketAddr,
    warm: Duration,
    measure: Duration,
) -> Result<Vec<Duration>> {
    let mut client = open(address, "echo")?;
    let mut taken = Vec::new();
    let began = Instant::now();
    let mut before = began;
    for number in 0_u64.. {
        echo(&mut client, &format!("message {number:012}"))?;
        let now = Instant::now();
        if before - began >= warm {
            taken.push(now - before);
        }
        if now - began >= warm + measure {
            break;
        }
        before = now;
    }
    client.close(None)?;
    Ok(taken)
}
