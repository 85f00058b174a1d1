//! The C interface as its users have it: the header and both libraries, compiled and run by the
//! system's C compiler, C++ compiler and Python.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with both libraries, where cargo builds them for this test.
fn libraries() -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    let folder = program.parent().expect("a folder").to_owned();
    if cfg!(feature = "cuda") {
        // cargo keeps one file for all sets of features, and does not see that another wrote it.
        let library = std::fs::read(folder.join("libhardmix_c.so")).expect("the library");
        let name = b"hardmix_cuda_step";
        assert!(
            library.windows(name.len()).any(|at| at == name),
            "libhardmix_c.so was built last without the feature cuda: touch capi/src/lib.rs"
        );
    }
    folder
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// Runs a command that must succeed; what it prints on stdout.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn compiler(variable: &str, name: &str, standard: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(file("include"));
    command
}

/// The C program, linked with what `link` adds.
fn build(source: &str, program: &str, link: impl FnOnce(&mut Command)) -> PathBuf {
    let program = folder().join(program);
    let mut compile = compiler("CC", "cc", "-std=c11");
    compile.arg(file(source)).arg("-o").arg(&program);
    link(&mut compile);
    run(compile.args(["-lm", "-lpthread", "-ldl"]));
    program
}

fn shared(link: &mut Command) {
    let folder = libraries();
    link.arg("-L").arg(&folder).arg("-lhardmix_c");
    link.arg(format!("-Wl,-rpath,{}", folder.display()));
}

#[test]
fn c_with_the_shared_library() {
    let program = build("tests/step.c", "step_shared", shared);
    let said = run(Command::new(program).arg(folder()));
    assert!(said.contains("all passed"), "{said}");
}

#[test]
fn c_with_the_static_library() {
    let program = build("tests/step.c", "step_static", |link| {
        link.arg(libraries().join("libhardmix_c.a"));
        link.arg("-lgcc_s");
    });
    let own = folder().join("static");
    std::fs::create_dir_all(&own).expect("a folder");
    let said = run(Command::new(program).arg(own));
    assert!(said.contains("all passed"), "{said}");
}

#[test]
fn the_header_is_strict_c_and_cpp() {
    let including = folder().join("including.c");
    std::fs::write(&including, "#include \"hardmix.h\"\n").expect("written");
    run(compiler("CC", "cc", "-std=c99")
        .args(["-fsyntax-only", "-DHARDMIX_CUDA"])
        .arg(&including));
    run(compiler("CXX", "c++", "-std=c++11")
        .args(["-fsyntax-only", "-DHARDMIX_CUDA", "-x", "c++"])
        .arg(&including));
}

/// On softgpu, or with `REQUIRE_GPU=1` on the machine's own GPU.
#[cfg(feature = "cuda")]
#[test]
fn c_on_the_device() {
    let program = build("tests/step_cuda.c", "step_cuda", shared);
    let mut command = Command::new(program);
    if !std::env::var("REQUIRE_GPU").is_ok_and(|value| !value.is_empty() && value != "0") {
        // Both names: with one alone, a driver that is installed wins for who asks for the other.
        let driver = folder().join("driver");
        std::fs::create_dir_all(&driver).expect("a folder");
        for name in ["libcuda.so", "libcuda.so.1"] {
            let link = driver.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(libraries().join("libsoftgpu.so"), link).expect("a link");
        }
        command.env("LD_LIBRARY_PATH", driver);
    }
    let said = run(&mut command);
    assert!(said.contains("all passed"), "{said}");
}

/// Where Python, or the one that `PYTHON` names, has NumPy; elsewhere the test says that it did not
/// run, and with `REQUIRE_NUMPY` fails.
#[test]
fn python_with_numpy() {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        let reason = format!("{python:?} has no NumPy (pip install numpy)");
        assert!(std::env::var_os("REQUIRE_NUMPY").is_none(), "{reason}");
        println!("not run: {reason}");
        return;
    }
    let said = run(Command::new(&python)
        .arg(file("examples/step.py"))
        .arg(libraries().join("libhardmix_c.so")));
    assert!(said.contains("agrees"), "{said}");
}
