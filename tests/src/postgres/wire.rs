//! Just enough of PostgreSQL's protocol to know when COMMIT has returned: trust authentication, simple queries, text.
//!
//! A message is a type byte, its length as a big-endian i32 that counts itself, and the body; the first one has no type.
//! Source: the PostgreSQL manual, chapter "Frontend/Backend Protocol", version 3.0.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const VERSION_3_0: i32 = 196_608;
/// No message of these tests comes near it.
const MESSAGE_MAX_BYTES: usize = 64 << 20;
/// A server that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug)]
pub enum WireError {
    /// The socket.
    Io(io::Error),
    /// The server refused; SQLSTATE and words.
    Refused {
        /// SQLSTATE.
        code: String,
        /// What it said.
        message: String,
    },
    /// Something that is no answer.
    Garbage(String),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WireError::Io(error) => write!(out, "{error}"),
            WireError::Refused { code, message } => write!(out, "{code} {message}"),
            WireError::Garbage(what) => write!(out, "no PostgreSQL answer: {what}"),
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        WireError::Io(error)
    }
}

/// What a query gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The tag of the last command: `COMMIT`, `INSERT 0 1`.
    pub tag: String,
    /// Rows of text; NULL is `None`.
    pub rows: Vec<Vec<Option<String>>>,
}

/// One session.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// A session of `role` on the database `postgres`.
    ///
    /// # Errors
    /// As the socket or the server says; the server refuses while it recovers.
    pub fn open(socket: &Path, role: &str) -> Result<Connection, WireError> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Connection { stream };
        let mut body = VERSION_3_0.to_be_bytes().to_vec();
        for text in ["user", role, "database", "postgres", ""] {
            body.extend(text.as_bytes());
            body.push(0);
        }
        connection.stream.write_all(&message(None, &body)?)?;
        connection.until_ready()?;
        Ok(connection)
    }

    /// Runs `sql` and waits until the server is done with it.
    ///
    /// # Errors
    /// As the socket or the server says.
    pub fn run(&mut self, sql: &str) -> Result<Answer, WireError> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.stream.write_all(&message(Some(b'Q'), &body)?)?;
        self.until_ready()
    }

    /// The one value of a query.
    ///
    /// # Errors
    /// As [`Connection::run`], or that there is no value.
    pub fn value(&mut self, sql: &str) -> Result<String, WireError> {
        let answer = self.run(sql)?;
        let value = answer.rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        value.ok_or_else(|| WireError::Garbage(format!("no value for {sql}")))
    }

    fn until_ready(&mut self) -> Result<Answer, WireError> {
        let mut answer = Answer::default();
        let mut refused = None;
        loop {
            let (kind, body) = match self.receive() {
                Ok(received) => received,
                // After a fatal error there is no "ready" any more.
                Err(WireError::Io(error)) => return Err(refused.unwrap_or(WireError::Io(error))),
                Err(error) => return Err(error),
            };
            match kind {
                b'Z' => return refused.map_or(Ok(answer), Err),
                b'E' => refused = Some(refusal(&body)),
                b'C' => answer.tag = text(&body),
                b'D' => answer.rows.push(row(&body)?),
                b'R' if body != [0; 4] => return Err(WireError::Garbage("it wants a password".to_owned())),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>), WireError> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let len_bytes = usize::try_from(i32::from_be_bytes(length)).ok().and_then(|length| length.checked_sub(4));
        let Some(len_bytes) = len_bytes.filter(|length| *length <= MESSAGE_MAX_BYTES) else {
            return Err(WireError::Garbage(format!("a message of {} bytes", i32::from_be_bytes(length))));
        };
        let mut body = vec![0; len_bytes];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

fn message(kind: Option<u8>, body: &[u8]) -> Result<Vec<u8>, WireError> {
    let length = i32::try_from(body.len() + 4).map_err(|_| WireError::Garbage("a query too long".to_owned()))?;
    let mut bytes: Vec<u8> = kind.into_iter().collect();
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The fields of an error: a type byte and a string each.
fn refusal(body: &[u8]) -> WireError {
    let field = |wanted: u8| {
        let mut fields = body.split(|byte| *byte == 0).filter_map(|field| field.split_first());
        fields.find(|(kind, _)| **kind == wanted).map(|(_, text)| String::from_utf8_lossy(text).into_owned())
    };
    WireError::Refused { code: field(b'C').unwrap_or_default(), message: field(b'M').unwrap_or_default() }
}

fn row(body: &[u8]) -> Result<Vec<Option<String>>, WireError> {
    let short = || WireError::Garbage("a row that ends too early".to_owned());
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(short)?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        rest = after;
        // -1 is NULL.
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length).ok_or_else(short)?;
        values.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_are_read_as_they_are_written() {
        let two = [0, 2, 0, 0, 0, 2, b'h', b'i', 255, 255, 255, 255];
        assert_eq!(row(&two).unwrap(), [Some("hi".to_owned()), None]);
        assert!(row(&two[..6]).is_err() && row(&[]).is_err());
        let error = refusal(b"SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        assert_eq!(error.to_string(), "57P03 the database system is starting up");
        assert_eq!(message(Some(b'Q'), b"x\0").unwrap(), [b'Q', 0, 0, 0, 6, b'x', 0]);
    }

    #[test]
    fn a_refusal_in_the_middle_does_not_end_the_session() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut far_end = far.try_clone().unwrap();
        for (kind, body) in
            [(b'E', &b"C40001\0Magain\0\0"[..]), (b'Z', b"I"), (b'D', b"\0\x01\0\0\0\x011"), (b'C', b"SELECT 1\0")]
        {
            far_end.write_all(&message(Some(kind), body).unwrap()).unwrap();
        }
        far_end.write_all(&message(Some(b'Z'), b"I").unwrap()).unwrap();
        let mut connection = Connection { stream: near };
        assert_eq!(connection.run("x").unwrap_err().to_string(), "40001 again");
        assert_eq!(connection.run("x").unwrap(), Answer { tag: "SELECT 1".into(), rows: vec![vec![Some("1".into())]] });
        drop((far, far_end));
        assert!(matches!(connection.run("x"), Err(WireError::Io(_))));
    }
}
