//! The C interface as its users have it: the header and both libraries, compiled and run by the
//! system's C compiler, C++ compiler and Python.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder with both libraries, as `cargo build` leaves them.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "hardmix-c", "--quiet"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        run(&mut build);
        let program = std::env::current_exe().expect("this program");
        let deps = program.parent().expect("a folder");
        deps.parent().expect("a folder").to_owned()
    })
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
    link.arg("-L").arg(folder).arg("-lhardmix_c");
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
        .arg("-fsyntax-only")
        .arg(&including));
    run(compiler("CXX", "c++", "-std=c++11")
        .args(["-fsyntax-only", "-x", "c++"])
        .arg(&including));
}

/// Where Python has NumPy; elsewhere the test says that it did not run.
#[test]
fn python_with_numpy() {
    let numpy = Command::new("python3")
        .args(["-c", "import numpy"])
        .output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        println!("not run: python3 has no NumPy (pip install numpy)");
        return;
    }
    let said = run(Command::new("python3")
        .arg(file("examples/step.py"))
        .arg(libraries().join("libhardmix_c.so")));
    assert!(said.contains("agrees"), "{said}");
}
