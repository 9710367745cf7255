//! Compiles the GPU's kernels: by nvcc for `cuda`, by the C++ compiler for `emulator`.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(gpu)");
    println!("cargo:rerun-if-changed=src/gpu/cuda");
    println!("cargo:rerun-if-changed=src/gpu/emulator");
    let has = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if has("CUDA") || has("EMULATOR") {
        println!("cargo:rustc-cfg=gpu");
    }
    if has("CUDA") {
        compile_to_ptx();
    }
    #[cfg(feature = "emulator")]
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .flag_if_supported("-Wno-unknown-pragmas")
        // A GPU refuses loads that are not aligned; here they trap.
        .flag_if_supported("-fsanitize=alignment")
        .flag_if_supported("-fsanitize-undefined-trap-on-error")
        .include("src/gpu/emulator")
        .file("src/gpu/emulator/emulator.cpp")
        .compile("emulated_kernels");
}

/// PTX for compute capability 8.0: the driver finishes it for the GPU that it finds.
fn compile_to_ptx() {
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let nvcc = std::env::var_os("NVCC").map(std::path::PathBuf::from).unwrap_or_else(|| match std::env::var_os("CUDA_HOME") {
        Some(home) => std::path::Path::new(&home).join("bin").join("nvcc"),
        None => "nvcc".into(),
    });
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for module in ["gemm", "attention", "norm", "maps"] {
        let status = std::process::Command::new(&nvcc)
            .args(["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-o"])
            .arg(out.join(format!("{module}.ptx")))
            .arg(format!("src/gpu/cuda/{module}.cu"))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{} failed on {module}.cu: {status}", nvcc.display()),
            Err(e) => panic!("cannot run {}: {e}; the feature `cuda` needs CUDA's compiler, by NVCC, CUDA_HOME or PATH", nvcc.display()),
        }
    }
}
