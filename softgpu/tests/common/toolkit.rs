//! Fat binaries of `tests/kernels/*.cu`, compiled once for each state of their sources.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The image of `tests/kernels/NAME.cu`, or `None`, with a loud line, where there is no nvcc. With
/// `REQUIRE_NVCC` set that is a failure. In the folder `SOFTGPU_TESTS_IMAGES` it lies ready for machines
/// without nvcc, or is left for them.
pub fn image(name: &str) -> Option<Vec<u8>> {
    let carried = std::env::var_os("SOFTGPU_TESTS_IMAGES")
        .map(|folder| Path::new(&folder).join(format!("{name}.fatbin")));
    if let Some(carried) = carried.as_deref().filter(|carried| carried.is_file()) {
        return Some(read(carried));
    }
    let nvcc = nvcc()?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let arguments = arguments(name);
    let mut hasher = DefaultHasher::new();
    (nvcc, &arguments).hash(&mut hasher);
    for file in [
        format!("{name}.cu"),
        "ampere.cuh".into(),
        "hopper.cuh".into(),
    ] {
        read(&sources.join(file)).hash(&mut hasher);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let image = folder.join(format!("{name}-{:016x}.fatbin", hasher.finish()));
    if !image.is_file() {
        std::fs::create_dir_all(&folder).expect("a folder under target");
        // Written beside and renamed: another process may be compiling the same file.
        let part = folder.join(format!("{name}-{}.part", std::process::id()));
        let output = Command::new(nvcc)
            .args(&arguments)
            .arg("-o")
            .arg(&part)
            .arg(sources.join(format!("{name}.cu")))
            .output()
            .unwrap_or_else(|error| panic!("{} does not run: {error}", nvcc.display()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "nvcc fails on {name}.cu:\n{said}");
        std::fs::rename(&part, &image).expect("the image moves to its place");
    }
    if let Some(carried) = carried {
        std::fs::copy(&image, carried).expect("a folder for images");
    }
    Some(read(&image))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn arguments(name: &str) -> Vec<&'static str> {
    let mut arguments = vec![
        "-fatbin",
        "--compress-mode=none",
        "-lineinfo",
        "-std=c++17",
        "-Werror=all-warnings",
        "--threads=2",
    ];
    arguments.extend(match name {
        "hopper" => ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"].as_slice(),
        // ptxas takes a minute on CUB; a real driver can compile the PTX as well.
        "cub" => &[
            "-gencode=arch=compute_80,code=compute_80",
            "-gencode=arch=compute_90a,code=compute_90a",
        ],
        _ => &[
            "-gencode=arch=compute_80,code=[sm_80,compute_80]",
            "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
        ],
    });
    arguments
}

/// nvcc where `tools/cuda-toolkit` finds it.
fn nvcc() -> Option<&'static PathBuf> {
    static NVCC: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = NVCC.get_or_init(|| {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/cuda-toolkit");
        let script = r#"eval "$("$0" --find)" && printf %s "$CUDA_HOME""#;
        let output = Command::new("bash")
            .arg("-c")
            .arg(script)
            .arg(tool)
            .output()
            .ok()?;
        let home = PathBuf::from(String::from_utf8(output.stdout).ok()?);
        let nvcc = home.join("bin/nvcc");
        nvcc.is_file().then_some(nvcc)
    });
    if found.is_none() {
        let fix = "there is no nvcc: run `tools/cuda-toolkit`, which fetches one";
        let required = std::env::var_os("REQUIRE_NVCC").is_some_and(|value| !value.is_empty());
        assert!(!required, "{fix}");
        eprintln!("SKIPPED: {fix}");
    }
    found.as_ref()
}
