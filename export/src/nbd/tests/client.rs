//! The smallest client: it sends what it is told and reads what comes.

use super::super::codec::{OPTION_MAGIC, option};
use super::*;

/// A connection.
pub(super) struct Client {
    pub(super) stream: UnixStream,
}

/// The bytes of a request.
pub(super) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len_bytes: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len_bytes.to_be_bytes());
    bytes
}

/// The bytes of an option.
pub(super) fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of GO and INFO.
pub(super) fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

impl Client {
    /// Connected, and the greeting answered.
    pub(super) fn connect(export: &NbdExport) -> Client {
        let stream = UnixStream::connect(export.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut client = Client { stream };
        assert_eq!(&client.take(18)[..8], b"NBDMAGIC");
        client.send(&3_u32.to_be_bytes());
        client
    }

    /// Past GO, without structured replies.
    pub(super) fn transmitting(export: &NbdExport) -> Client {
        let mut client = Client::connect(export);
        assert_eq!(client.go("", &[]), reply::ACK);
        client
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(super) fn take(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Sends an option and takes replies until the last one: its type.
    pub(super) fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        self.send(&option_bytes(option, data));
        loop {
            let head = self.take(20);
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            self.take(word(16) as usize);
            if !matches!(word(12), reply::INFO | reply::SERVER | reply::META_CONTEXT) {
                return word(12);
            }
        }
    }

    pub(super) fn go(&mut self, name: &str, infos: &[u16]) -> u32 {
        self.option(option::GO, &go_data(name, infos))
    }

    /// Error and cookie of the next simple reply.
    pub(super) fn simple_reply(&mut self) -> (u32, u64) {
        let head = self.take(16);
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        (u32::from_be_bytes(head[4..8].try_into().unwrap()), u64::from_be_bytes(head[8..].try_into().unwrap()))
    }

    fn call(&mut self, bytes: &[u8]) -> u32 {
        self.send(bytes);
        self.simple_reply().0
    }

    pub(super) fn read(&mut self, offset: u64, len_bytes: u32) -> Result<Vec<u8>, u32> {
        match self.call(&request(0, 0, 9, offset, len_bytes)) {
            0 => Ok(self.take(len_bytes as usize)),
            error => Err(error),
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> u32 {
        let mut bytes = request(1, flags, 8, offset, data.len() as u32);
        bytes.extend_from_slice(data);
        self.call(&bytes)
    }

    pub(super) fn write_zeroes(&mut self, offset: u64, len_bytes: u32, flags: u16) -> u32 {
        self.call(&request(6, flags, 7, offset, len_bytes))
    }

    pub(super) fn flush(&mut self) -> u32 {
        self.call(&request(3, 0, 6, 0, 0))
    }
}
