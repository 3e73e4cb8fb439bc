//! Made-up measurements for tests: noise of a machine that others share, from a seed.
#![allow(clippy::cast_possible_truncation)] // rates to bytes

use std::collections::BTreeMap;

use crate::run::{FORMAT, Job, Latency, Layer, Machine, Measurement, PLAIN, Pattern, Run, Sample, Settings};

/// splitmix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Over 0 and under 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Standard normal: Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t with three degrees of freedom: no fourth moment.
    pub(crate) fn heavy(&mut self) -> f64 {
        let squares = self.normal().powi(2) + self.normal().powi(2) + self.normal().powi(2);
        self.normal() / (squares / 3.0).sqrt()
    }
}

/// A walk of the whole machine, and what disturbs single pieces.
pub(crate) struct Noise {
    level: f64,
    trend: f64,
    piece: f64,
}

impl Noise {
    /// Up to a third between runs, up to 1% a round, 1.5% a piece and now and then much more.
    pub(crate) fn of_a_shared_machine(random: &mut Random) -> Noise {
        Noise { level: 0.15 * random.normal(), trend: 0.004 * random.normal(), piece: 0.015 }
    }

    /// The factor that all pieces of the next round share.
    pub(crate) fn of_round(&mut self, random: &mut Random) -> f64 {
        self.level += self.trend + 0.03 * random.normal();
        self.level.exp()
    }

    /// The factor of one piece; one of fifty is held up.
    pub(crate) fn of_piece(&self, random: &mut Random) -> f64 {
        let held_up = if random.uniform() < 0.02 { 0.6 } else { 1.0 };
        held_up * (self.piece * random.heavy()).exp()
    }
}

/// A second at that rate, in blocks of 4 KiB.
pub(crate) fn sample(round: u32, bytes_per_s: f64) -> Sample {
    let bytes = bytes_per_s.max(0.0).round() as u64;
    let requests = bytes / 4096;
    let median_ns = 1e9 * 32.0 / (bytes_per_s / 4096.0).max(1.0);
    let of = |factor: f64| (median_ns * factor) as u64;
    Sample {
        round,
        bytes,
        requests,
        elapsed_ns: 1_000_000_000,
        user_ns: 120_000_000,
        kernel_ns: 480_000_000,
        latency: Latency {
            min_ns: of(0.4),
            mean_ns: median_ns,
            max_ns: of(20.0),
            percentiles_ns: [("50", 1.0), ("90", 1.7), ("99", 3.0), ("99.9", 7.0), ("99.99", 15.0)]
                .map(|(name, factor)| (name.to_owned(), of(factor)))
                .into(),
            histogram: String::new(),
        },
    }
}

/// What a layer keeps of the plain file's rate.
pub(crate) const LAYERS: [(&str, &str, f64); 4] = [
    (PLAIN, "the file itself", 1.0),
    ("ring", "our cipher in the ring", 0.97),
    ("fuse", "FUSE", 0.92),
    ("fuse-loop", "a loop device over FUSE", 0.86),
];

/// The jobs of `luksbench io` and the plain file's rate in each.
pub(crate) fn jobs() -> Vec<(Job, f64)> {
    let job =
        |name: &str, pattern, block_bytes, depth| Job { name: name.into(), pattern, block_bytes, depth, threads: 1 };
    vec![
        (job("seq-read", Pattern::SequentialRead, 1 << 20, 8), 900e6),
        (job("seq-write", Pattern::SequentialWrite, 1 << 20, 8), 1400e6),
        (job("rand-read", Pattern::RandomRead, 4096, 32), 290e6),
        (job("rand-write", Pattern::RandomWrite, 4096, 32), 130e6),
        (job("mixed", Pattern::RandomMixed, 4096, 32), 200e6),
        (job("rand-read-qd1", Pattern::RandomRead, 4096, 1), 60e6),
    ]
}

/// A run; `changed` gives a factor to each job and layer.
pub(crate) fn run(seed: u64, rounds: u32, changed: impl Fn(&str, &str) -> f64) -> Run {
    let mut random = Random::new(seed);
    let mut measurements = Vec::new();
    for (job, plain) in jobs() {
        let mut noise = Noise::of_a_shared_machine(&mut random);
        let mut samples = vec![Vec::new(); LAYERS.len()];
        for round in 0..rounds {
            let common = noise.of_round(&mut random);
            for ((layer, _, kept), samples) in LAYERS.iter().zip(&mut samples) {
                let rate = plain * kept * common * noise.of_piece(&mut random) * changed(&job.name, layer);
                samples.push(sample(round, rate));
            }
        }
        for ((layer, _, _), samples) in LAYERS.iter().zip(samples) {
            measurements.push(Measurement { job: job.name.clone(), layer: (*layer).into(), samples });
        }
    }
    let layer = |(name, title, _): &(&str, &str, f64)| Layer {
        name: (*name).into(),
        title: (*title).into(),
        absent: None,
        chosen_by_open: *name == "fuse-loop",
    };
    let mut layers: Vec<Layer> = LAYERS.iter().map(layer).collect();
    let absent = Some("no /dev/ublk-control: modprobe ublk_drv".to_owned());
    layers.push(Layer { name: "ublk".into(), title: "ublk".into(), absent, chosen_by_open: false });
    Run {
        format: FORMAT,
        started_unix_s: 1_795_000_000,
        machine: Machine {
            cpu: "AMD EPYC".into(),
            cpus: 2,
            memory_bytes: 8 << 30,
            kernel: "6.12.0".into(),
            aes_kernel: "vaes512: the processor has VAES and AVX-512".into(),
            storage: "ext4 on /dev/vda".into(),
            versions: BTreeMap::from([("luksbench".to_owned(), "0.1.0".to_owned())]),
        },
        settings: Settings {
            target: "/srv/test".into(),
            size_bytes: 1 << 30,
            rounds,
            piece_ms: 1000,
            warm_up_ms: 200,
            direct: true,
            sector_bytes: 4096,
            queue: "io_uring".into(),
        },
        layers,
        jobs: jobs().into_iter().map(|(job, _)| job).collect(),
        measurements,
        interrupted: false,
        remarks: vec!["the disk is shared".into()],
    }
}
