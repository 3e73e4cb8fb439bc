//! Tells the crate whether it is compiled without most optimisations: its frames are larger then.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(large_frames)");
    if matches!(std::env::var("OPT_LEVEL").as_deref(), Ok("0" | "1")) {
        println!("cargo::rustc-cfg=large_frames");
    }
}
