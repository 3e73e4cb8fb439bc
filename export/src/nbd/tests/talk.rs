//! Whole conversations without a socket: what is answered to which bytes.

use super::client::{go_data, option_bytes};
use super::*;

/// What the server sends to a client that sends `input`, and why it hung up, if it did.
fn said(disks: Vec<NbdDisk>, input: &[u8], buffer_bytes: usize) -> (Vec<u8>, Result<(), String>) {
    let mut output = Vec::new();
    let ended = speak(disks, &mut &*input, &mut output, buffer_bytes);
    (output, ended)
}

/// Types of the replies to the options of `input` (flags come before them), to a server with one disk.
fn reply_types(input: &[u8]) -> Vec<u32> {
    let mut all = 3_u32.to_be_bytes().to_vec();
    all.extend_from_slice(input);
    let (output, _) = said(vec![named("disk", memory()), named("other", memory())], &all, 4096);
    let (mut rest, mut types) = (&output[18..], Vec::new());
    while rest.len() >= 20 {
        types.push(u32::from_be_bytes(rest[12..16].try_into().unwrap()));
        let len_bytes = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
        rest = &rest[20 + len_bytes..];
    }
    assert!(rest.is_empty());
    types
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// What comes after structured replies, the allocation context and GO are agreed on: all that the server then says.
fn structured(disk: Arc<dyn BlockIo>, requests: &[u8], buffer_bytes: usize) -> Vec<u8> {
    let mut input = 3_u32.to_be_bytes().to_vec();
    input.extend(option_bytes(option::STRUCTURED_REPLY, &[]));
    input.extend(option_bytes(option::SET_META_CONTEXT, &context_data("disk", &["base:allocation"])));
    input.extend(option_bytes(option::GO, &go_data("disk", &[])));
    let before = said(vec![named("disk", Arc::clone(&disk))], &input, buffer_bytes).0.len();
    input.extend_from_slice(requests);
    let (output, ended) = said(vec![named("disk", disk)], &input, buffer_bytes);
    ended.unwrap();
    output[before..].to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn every_option_has_its_answer() {
    assert_eq!(reply_types(&option_bytes(option::LIST, &[])), [reply::SERVER, reply::SERVER, reply::ACK]);
    assert_eq!(reply_types(&option_bytes(option::LIST, b"x")), [reply::ERR_INVALID]);
    assert_eq!(reply_types(&option_bytes(option::STARTTLS, &[])), [reply::ERR_POLICY]);
    assert_eq!(reply_types(&option_bytes(11, &[])), [reply::ERR_UNSUPPORTED]);
    assert_eq!(reply_types(&option_bytes(option::ABORT, &[])), [reply::ACK]);
    assert_eq!(reply_types(&option_bytes(option::STRUCTURED_REPLY, b"x")), [reply::ERR_INVALID]);
    let info = option_bytes(option::INFO, &go_data("other", &[1, 2, 3, 77]));
    assert_eq!(reply_types(&info), [reply::INFO, reply::INFO, reply::INFO, reply::INFO, reply::ACK]);
    assert_eq!(reply_types(&option_bytes(option::INFO, &go_data("else", &[]))), [reply::ERR_UNKNOWN]);
    assert_eq!(reply_types(&option_bytes(option::GO, &go_data(&"x".repeat(5000), &[]))), [reply::ERR_TOO_BIG]);
    for lie in [&[][..], &[0, 0, 0, 9, b'a'], &[0xff; 6], &[0, 0, 0, 0, 0, 9, 0, 1], &[0, 0, 0, 0, 0, 0, 7]] {
        assert_eq!(reply_types(&option_bytes(option::GO, lie)), [reply::ERR_INVALID], "{lie:?}");
    }
}

#[test]
fn contexts_need_structured_replies_and_an_exact_name() {
    let list = |queries: &[&str]| option_bytes(option::LIST_META_CONTEXT, &context_data("", queries));
    let set = |queries: &[&str]| option_bytes(option::SET_META_CONTEXT, &context_data("", queries));
    assert_eq!(reply_types(&list(&[])), [reply::ERR_INVALID]);
    let after =
        |bytes: Vec<u8>| reply_types(&[option_bytes(option::STRUCTURED_REPLY, &[]), bytes].concat())[1..].to_vec();
    for found in [list(&[]), list(&["base:"]), list(&["qemu:x", "base:allocation"]), set(&["base:allocation"])] {
        assert_eq!(after(found), [reply::META_CONTEXT, reply::ACK]);
    }
    for none in [list(&["qemu:"]), set(&["base:"]), set(&[])] {
        assert_eq!(after(none), [reply::ACK]);
    }
    let lie = option_bytes(option::SET_META_CONTEXT, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(after(lie), [reply::ERR_INVALID]);
}

#[test]
fn liars_in_the_handshake_are_closed_with_a_reason() {
    let reason = |input: &[u8]| said(vec![named("disk", memory())], input, 4096).1.unwrap_err();
    assert!(reason(&[0xff; 4]).contains("unknown handshake flags"));
    assert!(
        reason(&[0, 0, 0, 3, b'G', b'E', b'T', b' ', b'/', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).contains("something else")
    );
    let mut huge = vec![0, 0, 0, 3];
    huge.extend(option_bytes(option::GO, &[]));
    huge.splice(16.., [0xff; 4]);
    assert!(reason(&huge).contains("claims 4294967295 bytes"));
    let mut endless = vec![0, 0, 0, 3];
    (0..300).for_each(|_| endless.extend(option_bytes(option::LIST, &[])));
    assert!(reason(&endless).contains("256 options"));
    let mut unknown = vec![0, 0, 0, 1];
    unknown.extend(option_bytes(option::EXPORT_NAME, b"no\n"));
    assert!(reason(&unknown).contains("export \"no\\n\""));
    assert_eq!(said(vec![named("disk", memory())], &[], 4096).1, Ok(()), "only looked whether somebody is there");
}

#[test]
fn the_oldest_way_to_begin_pads_unless_told_not_to() {
    for (flags, padding) in [(1, 124), (3, 0)] {
        let mut input = vec![0, 0, 0, flags];
        input.extend(option_bytes(option::EXPORT_NAME, b"disk"));
        let (output, ended) = said(vec![named("disk", memory())], &input, 4096);
        assert_eq!((ended, output.len()), (Ok(()), 18 + 10 + padding));
        assert_eq!(output[18..26], SIZE_BYTES.to_be_bytes());
    }
}

#[test]
fn a_long_read_comes_in_chunks_and_breaks_off_where_the_disk_does() {
    let disk = Arc::new(FaultDisk::new(MemDisk::new(Bytes(SIZE_BYTES))));
    disk.write_at(Bytes(0), &[5; 10240], false).unwrap();
    let output = structured(Arc::clone(&disk) as _, &request(0, 0, 1, 0, 10240), 4096);
    assert_eq!(output.len(), 3 * 28 + 10240);
    assert_eq!((output[5], output[2 * (28 + 4096) + 5]), (0, 1), "the last one says that it is the last");
    disk.fail_from(Op::Read, 2, BlockErrorKind::Io);
    let output = structured(Arc::clone(&disk) as _, &request(0, 0, 1, 0, 10240), 4096);
    let error = &output[28 + 4096..];
    assert_eq!((error[5], &error[6..8], u32_at(error, 20)), (1, &[0x80, 2][..], 5));
    assert_eq!(error[error.len() - 8..], 4096_u64.to_be_bytes());
}

#[test]
fn requests_that_break_a_rule_are_refused_one_by_one() {
    let data = [1; 16];
    let fua_write = [request(1, 1, 1, SIZE_BYTES - 8, 16), data.to_vec()].concat();
    let bad_flag_write = [request(1, 0x8000, 1, 0, 16), data.to_vec()].concat();
    for (bytes, error, why) in [
        (request(0, 0, 1, SIZE_BYTES, 1), 22, "a read behind the end"),
        (request(0, 0, 1, u64::MAX, 2), 22, "an end that overflows"),
        (request(0, 0, 1, 0, 0), 22, "nothing"),
        (request(0, 4, 1, 0, 8192), 75, "one piece that is too long for one"),
        (request(7, 0x10, 1, 0, 512), 22, "a flag of another command"),
    ] {
        let output = structured(memory(), &bytes, 4096);
        assert_eq!((&output[6..8], u32_at(&output, 20)), (&[0x80, 1][..], error), "{why}");
    }
    for (bytes, error, why) in [
        (fua_write, 28, "a write across the end"),
        (bad_flag_write, 22, "a flag that nobody knows; its payload is taken all the same"),
        (request(4, 0, 1, SIZE_BYTES, 1), 22, "a trim behind the end"),
        (request(6, 0, 1, SIZE_BYTES, 1), 28, "zeroes behind the end"),
        (request(6, flag::FAST_ZERO, 1, 0, 512), 95, "zeroes that would have to be fast"),
        (request(5, 0, 1, 0, 512), 22, "CACHE, which was not announced"),
        (request(77, 0, 1, 0, 512), 22, "no command"),
        (request(4, 1, 1, 1, 511), 0, "a trim of no whole block"),
        (request(3, 0, 1, 77, 77), 0, "a flush with what it does not need"),
    ] {
        let output = structured(memory(), &[bytes, request(3, 0, 2, 0, 0)].concat(), 4096);
        assert_eq!((output.len(), u32_at(&output, 4), u32_at(&output, 20)), (32, error, 0), "{why}");
    }
}

#[test]
fn a_read_only_export_takes_nothing_and_everything_is_data() {
    let mut disk = named("disk", memory());
    disk.read_only = true;
    let mut input = vec![0, 0, 0, 3];
    input.extend(option_bytes(option::EXPORT_NAME, b""));
    for command in [1, 4, 6] {
        input.extend(request(command, 0, 1, 0, 16));
        input.extend(vec![0; if command == 1 { 16 } else { 0 }]);
    }
    let (output, ended) = said(vec![disk], &input, 4096);
    let replies = &output[28..];
    assert_eq!((ended, replies.len()), (Ok(()), 48));
    assert!([4, 20, 36].iter().all(|at| u32_at(replies, *at) == 1), "EPERM");
    assert_eq!(output[27] & 2, 2, "and it was told so");
    let status = structured(memory(), &request(7, 0, 3, 4096, 1 << 20), 4096);
    assert_eq!((status.len(), u32_at(&status, 20), u32_at(&status, 24), u32_at(&status, 28)), (32, 1, 1 << 20, 0));
}

#[test]
fn a_long_write_goes_through_a_short_buffer() {
    let disk = memory();
    let data: Vec<u8> = (0..10_000_u32).map(|index| index as u8).collect();
    let output = structured(Arc::clone(&disk) as _, &[request(1, 0, 1, 100, 10_000), data.clone()].concat(), 4096);
    assert_eq!((output.len(), u32_at(&output, 4)), (16, 0));
    let output = structured(disk, &request(0, 0, 1, 100, 4096), 4096);
    assert_eq!(output[28..], data[..4096]);
}
