//! Criterion benchmark of the sector ciphers: `cargo bench -p luksbench`.

#![allow(missing_docs, clippy::expect_used)] // criterion_group! makes public functions

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dmcrypt::{CipherSpec, SectorSize};

/// Encryption and decryption in place of 64 KiB, by cipher string and sector size.
fn sectors(c: &mut Criterion) {
    const LEN_BYTES: usize = 64 << 10;
    let mut group = c.benchmark_group("64 KiB in place");
    group.throughput(Throughput::Bytes(LEN_BYTES as u64));
    for (spec, key_bytes) in
        [("aes-xts-plain64", 64), ("aes-xts-plain64", 32), ("aes-xts-essiv:sha256", 64), ("aes-cbc-essiv:sha256", 32)]
    {
        for sector_size in [SectorSize::S512, SectorSize::S4096] {
            let cipher =
                CipherSpec::parse(spec).and_then(|spec| dmcrypt::build(&spec, &vec![0x42; key_bytes], sector_size));
            let cipher = cipher.expect("every string here is supported");
            let name = format!("{spec} {} bit, {} B", key_bytes * 8, sector_size.bytes());
            let mut buffer = vec![0; LEN_BYTES];
            group.bench_function(BenchmarkId::new("encrypt", &name), |b| {
                b.iter(|| cipher.encrypt_in_place(0, &mut buffer));
            });
            group.bench_function(BenchmarkId::new("decrypt", &name), |b| {
                b.iter(|| cipher.decrypt_in_place(0, &mut buffer));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sectors);
criterion_main!(benches);
