//! `luksbench crypto`: AES-256-XTS, in place, one thread, against `aes` + `xts-mode`.

use std::time::Duration;

use aes::Aes256;
use aes::cipher::KeyInit;
use anyhow::{Context, Result, bail};
use dmcrypt::{CipherSpec, SectorCipher, SectorSize};
use serde::Serialize;
use xts_mode::{Xts128, get_tweak_default};

use crate::rounds::{median, timed};

/// A key with no meaning: what is measured does not depend on it.
const KEY: [u8; 64] = [0x42; 64];

const ROUNDS: u32 = 9;

/// Largest buffer that can be asked for.
const MAX_BUFFER_BYTES: usize = 1 << 30;

/// Options of `luksbench crypto`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Buffer sizes, multiples of 4096 bytes; K and M are powers of 1024
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4K,64K,1M", value_parser = size)]
    sizes: Vec<usize>,
    /// Time for the whole run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
}

/// The measurement of one direction, sector size and buffer size.
#[derive(Serialize)]
struct Row {
    operation: &'static str,
    sector_bytes: u32,
    buffer_bytes: usize,
    dmcrypt_gb_per_s: f64,
    xts_mode_gb_per_s: f64,
    ratio: f64,
}

#[derive(Serialize)]
struct Report {
    engine: String,
    cipher: &'static str,
    rounds: u32,
    rows: Vec<Row>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cells = args.sizes.len() * 4;
    let slice = Duration::from_secs_f64(args.seconds / (cells as f64 * f64::from(ROUNDS) * 2.0));
    let spec = CipherSpec::parse("aes-xts-plain64")?;
    let mut rows = Vec::with_capacity(cells);
    for sector_size in [SectorSize::S512, SectorSize::S4096] {
        let ours = dmcrypt::build(&spec, &KEY, sector_size)?;
        for &buffer_bytes in &args.sizes {
            for encrypt in [true, false] {
                rows.push(measure(ours.as_ref(), buffer_bytes, encrypt, slice)?);
            }
        }
    }
    let report =
        Report { engine: dmcrypt::kernel_and_reason(), cipher: "aes-xts-plain64, 512-bit key", rounds: ROUNDS, rows };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn measure(ours: &dyn SectorCipher, buffer_bytes: usize, encrypt: bool, slice: Duration) -> Result<Row> {
    let sector_bytes = ours.sector_size().bytes();
    let (data_key, tweak_key) = KEY.split_at(32);
    let theirs = Xts128::new(Aes256::new_from_slice(data_key)?, Aes256::new_from_slice(tweak_key)?);
    let iv_step = u128::from(sector_bytes / 512);
    let tweak = |number: u128| get_tweak_default(number * iv_step);
    let (mut our_buffer, mut their_buffer) = (vec![0; buffer_bytes], vec![0; buffer_bytes]);
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    // Both must write the same bytes, or the comparison is of two different things.
    ours.encrypt_in_place(0, &mut our_buffer);
    theirs.encrypt_area(&mut their_buffer, sector_bytes as usize, 0, tweak);
    if our_buffer != their_buffer {
        bail!("the two implementations disagree at {sector_bytes}-byte sectors");
    }
    for _ in 0..ROUNDS {
        our_times.push(timed(slice, || match encrypt {
            true => ours.encrypt_in_place(0, &mut our_buffer),
            false => ours.decrypt_in_place(0, &mut our_buffer),
        }));
        their_times.push(timed(slice, || match encrypt {
            true => theirs.encrypt_area(&mut their_buffer, sector_bytes as usize, 0, tweak),
            false => theirs.decrypt_area(&mut their_buffer, sector_bytes as usize, 0, tweak),
        }));
    }
    let rate = |times| buffer_bytes as f64 / median(times).as_secs_f64() / 1e9;
    let (our_rate, their_rate) = (rate(our_times), rate(their_times));
    Ok(Row {
        operation: if encrypt { "encrypt" } else { "decrypt" },
        sector_bytes,
        buffer_bytes,
        dmcrypt_gb_per_s: our_rate,
        xts_mode_gb_per_s: their_rate,
        ratio: our_rate / their_rate,
    })
}

fn print(report: &Report) {
    println!("engine: {}", report.engine);
    println!("cipher: {}, one thread, in place, median of {} rounds", report.cipher, report.rounds);
    println!("{:<8} {:>7} {:>9} {:>15} {:>15} {:>7}", "", "sector", "buffer", "dmcrypt", "aes + xts-mode", "ratio");
    for row in &report.rows {
        println!(
            "{:<8} {:>5} B {:>5} KiB {:>10.2} GB/s {:>10.2} GB/s {:>6.1}x",
            row.operation,
            row.sector_bytes,
            row.buffer_bytes / 1024,
            row.dmcrypt_gb_per_s,
            row.xts_mode_gb_per_s,
            row.ratio
        );
    }
}

/// "64K" to bytes; whole 4096-byte sectors only.
fn size(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let count: usize = digits.parse().with_context(|| format!("{text:?} is no size"))?;
    match count.checked_mul(unit) {
        Some(bytes) if bytes > 0 && bytes.is_multiple_of(4096) && bytes <= MAX_BUFFER_BYTES => Ok(bytes),
        _ => bail!("{text:?} is not a multiple of 4096 bytes up to 1024M"),
    }
}

fn seconds(text: &str) -> Result<f64> {
    let value: f64 = text.parse().with_context(|| format!("{text:?} is no number of seconds"))?;
    if !(0.01..=3600.0).contains(&value) {
        bail!("{value} is not between 0.01 and 3600 seconds");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors() {
        assert_eq!(size("4K").unwrap(), 4096);
        assert_eq!(size("8192").unwrap(), 8192);
        assert_eq!(size("1M").unwrap(), 1 << 20);
        for bad in ["", "0", "K", "5000", "1025M", "99999999999999999999", "-4K"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seconds_have_bounds() {
        assert!(seconds("0.5").is_ok());
        for bad in ["0", "-1", "nan", "inf", "4000"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn both_implementations_agree_and_are_measured() {
        let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
        for sector_size in [SectorSize::S512, SectorSize::S4096] {
            let ours = dmcrypt::build(&spec, &KEY, sector_size).unwrap();
            let row = measure(ours.as_ref(), 8192, true, Duration::from_micros(100)).unwrap();
            assert!(row.ratio > 0.0 && row.dmcrypt_gb_per_s > 0.0);
        }
    }
}
