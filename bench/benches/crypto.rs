//! Criterion benchmark of the sector ciphers, in place: `cargo bench -p luksbench`.

#![allow(missing_docs, clippy::expect_used)] // criterion_group! makes public functions

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};

const SECTOR_SIZES: [SectorSize; 2] = [SectorSize::S512, SectorSize::S4096];
const BUFFERS_BYTES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 64 << 20];

/// AES-256-XTS by direction, kernel, sector size and buffer.
fn kernels(c: &mut Criterion) {
    let spec = CipherSpec::parse("aes-xts-plain64").expect("this string is supported");
    let mut group = c.benchmark_group("AES-256-XTS");
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        for sector_size in SECTOR_SIZES {
            let cipher = dmcrypt::build_with(kernel, &spec, &[0x42; 64], sector_size).expect("it is available");
            for len_bytes in BUFFERS_BYTES {
                group.throughput(Throughput::Bytes(len_bytes as u64));
                let name = format!("{}, {} B sectors, {} KiB", kernel.name(), sector_size.bytes(), len_bytes >> 10);
                both_ways(&mut group, &name, cipher.as_ref(), vec![0; len_bytes]);
            }
        }
    }
    group.finish();
}

/// The other cipher strings on 64 KiB, on the kernel that is in use.
fn strings(c: &mut Criterion) {
    const LEN_BYTES: usize = 64 << 10;
    let mut group = c.benchmark_group("64 KiB");
    group.throughput(Throughput::Bytes(LEN_BYTES as u64));
    for (spec, key_bytes) in
        [("aes-xts-plain64", 32), ("aes-xts-essiv:sha256", 64), ("aes-cbc-essiv:sha256", 32), ("aes-cbc-plain64", 16)]
    {
        for sector_size in SECTOR_SIZES {
            let cipher =
                CipherSpec::parse(spec).and_then(|spec| dmcrypt::build(&spec, &vec![0x42; key_bytes], sector_size));
            let cipher = cipher.expect("every string here is supported");
            let name = format!("{spec} {} bit, {} B sectors", key_bytes * 8, sector_size.bytes());
            both_ways(&mut group, &name, cipher.as_ref(), vec![0; LEN_BYTES]);
        }
    }
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn both_ways(group: &mut Group<'_>, name: &str, cipher: &dyn SectorCipher, mut buffer: Vec<u8>) {
    group.bench_function(BenchmarkId::new("encrypt", name), |b| b.iter(|| cipher.encrypt_in_place(0, &mut buffer)));
    group.bench_function(BenchmarkId::new("decrypt", name), |b| b.iter(|| cipher.decrypt_in_place(0, &mut buffer)));
}

criterion_group!(benches, kernels, strings);
criterion_main!(benches);
