//! With the feature `cuda`: nvcc, through cc, makes one fat binary of each `kernels/*.cu`, and bindgen
//! makes Rust of `kernels/params.h`. Without it there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(reason) = cuda::build() {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::hash_map::DefaultHasher;
    use std::env;
    use std::fmt::Write as _;
    use std::fs;
    use std::hash::{Hash, Hasher};
    use std::iter;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The folder of the kernels; tests that plant defects in a copy name that.
    const FOLDER: &str = "HARDMIX_KERNELS";
    const HEADER: &str = "params.h";
    const FIX: &str = "install the CUDA toolkit and libclang and set CUDA_HOME, or, in a clone of the \
                       repository, run `eval \"$(tools/cuda-toolkit)\"`, which fetches both";

    pub fn build() -> Result<(), String> {
        for variable in [
            FOLDER,
            "CUDA_HOME",
            "CUDA_PATH",
            "NVCC",
            "CUDAARCHS",
            "LIBCLANG_PATH",
            "PATH",
        ] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        // docs.rs has libclang and no nvcc; nothing runs there.
        let documentation = env::var_os("DOCS_RS").is_some();
        let home = toolkit();
        match &home {
            Some(home) => set_tools(home),
            None if documentation => {}
            None => return Err(format!("no nvcc was found: {FIX}")),
        }
        let folder = env::var_os(FOLDER).map_or_else(|| "kernels".into(), PathBuf::from);
        bind(&folder.join(HEADER), &out)?;
        let kernels = if documentation {
            Vec::new()
        } else {
            let home = home.as_deref().expect("nvcc was found");
            compile_all(&nvcc_of(home), &folder, &out)?
        };
        embed(&kernels, &out)
    }

    fn nvcc_of(home: &Path) -> PathBuf {
        home.join("bin").join("nvcc")
    }

    /// The folder of the CUDA toolkit: CUDA_HOME, CUDA_PATH, NVCC, nvcc on PATH, /usr/local/cuda,
    /// and what `tools/cuda-toolkit` fetched.
    fn toolkit() -> Option<PathBuf> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        let of_nvcc = |nvcc: &Path| Some(fs::canonicalize(nvcc).ok()?.parent()?.parent()?.into());
        let on_path = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("nvcc"))
            .find(|nvcc| nvcc.is_file());
        [
            variable("CUDA_HOME").map(PathBuf::from),
            variable("CUDA_PATH").map(PathBuf::from),
            variable("NVCC").and_then(|nvcc| of_nvcc(Path::new(&nvcc))),
            on_path.and_then(|nvcc| of_nvcc(&nvcc)),
            Some("/usr/local/cuda".into()),
            Some(".toolkit/cuda-13.0/nvidia/cu13".into()),
        ]
        .into_iter()
        .flatten()
        .find(|home| nvcc_of(home).is_file())
        .and_then(|home| fs::canonicalize(home).ok())
    }

    /// Tells cc and clang-sys, which take them from the environment, where nvcc and libclang are.
    fn set_tools(home: &Path) {
        // SAFETY: a build script has one thread here.
        unsafe { env::set_var("NVCC", nvcc_of(home)) };
        // Where the wheel of libclang lies that is fetched beside the toolkit's.
        let clang = home.join("../../clang/native");
        if env::var_os("LIBCLANG_PATH").is_none() && clang.join("libclang.so").is_file() {
            // SAFETY: as above.
            unsafe { env::set_var("LIBCLANG_PATH", clang) };
        }
    }

    /// The structs and constants that kernels and Rust share, with tests of their layout.
    fn bind(header: &Path, out: &Path) -> Result<(), String> {
        let header = header.display().to_string();
        println!("cargo:rerun-if-changed={header}");
        // Without it bindgen would panic.
        clang_sys::load().map_err(|reason| format!("no libclang was found ({reason}): {FIX}"))?;
        bindgen::Builder::default()
            .header(&header)
            .clang_args(["-xc++", "-std=c++17"])
            .allowlist_file(&header)
            .layout_tests(true)
            .formatter(bindgen::Formatter::None)
            .generate()
            .map_err(|error| format!("{header}: {error}"))?
            .write_to_file(out.join("params.rs"))
            .map_err(|error| error.to_string())
    }

    /// One image a file of kernels, compiled again only where it or a header has changed.
    fn compile_all(nvcc: &Path, folder: &Path, out: &Path) -> Result<Vec<String>, String> {
        let mut headers = files(&folder.join("device"), "cuh")?;
        headers.push(folder.join(HEADER));
        println!("cargo:rerun-if-changed={}", folder.display());
        let mut names = Vec::new();
        for source in files(folder, "cu")? {
            let name = source.file_stem().expect("a .cu file has a name");
            let name = name.to_string_lossy().into_owned();
            compile(nvcc, &source, &headers, &out.join(&name))?;
            names.push(name);
        }
        Ok(names)
    }

    fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
        let entries =
            fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        found.sort();
        Ok(found)
    }

    /// `stem.fatbin` and what ptxas said of it, `stem.ptxas`.
    fn compile(nvcc: &Path, source: &Path, headers: &[PathBuf], stem: &Path) -> Result<(), String> {
        let (image, report) = (stem.with_extension("fatbin"), stem.with_extension("ptxas"));
        let mut command = cc::Build::new()
            .cuda(true)
            .cudart("none")
            .cargo_metadata(false)
            .cargo_warnings(false)
            // With it nvcc would not optimise the device's code.
            .debug(false)
            .opt_level(3)
            .extra_warnings(true)
            .flag("-std=c++17")
            .try_get_compiler()
            .map_err(|error| format!("{}: {error}: {FIX}", nvcc.display()))?
            .to_command();
        command
            .args(["-fatbin", "--compress-mode=none", "-lineinfo"])
            .arg("-Werror=all-warnings")
            .arg("-Xptxas=-v")
            .arg("-I")
            .arg(source.parent().expect("a file has a folder"))
            .args(architectures()?)
            .arg("-o")
            .arg(&image)
            .arg(source);

        let mut hasher = DefaultHasher::new();
        line_of(&command).hash(&mut hasher);
        for file in headers.iter().chain([&source.to_path_buf()]) {
            let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            text.hash(&mut hasher);
        }
        let (key, key_file) = (
            format!("{:016x}", hasher.finish()),
            stem.with_extension("key"),
        );
        if image.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
            return Ok(());
        }
        let output = run(&mut command)?;
        fs::write(&report, output).map_err(|error| error.to_string())?;
        fs::write(&key_file, key).map_err(|error| error.to_string())
    }

    /// Program and arguments, without the environment that cc gives it.
    fn line_of(command: &Command) -> String {
        let words = iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    fn run(command: &mut Command) -> Result<Vec<u8>, String> {
        let output = command
            .output()
            .map_err(|error| format!("nvcc does not run ({error}): {FIX}"))?;
        if output.status.success() {
            Ok(output.stderr)
        } else {
            Err(format!(
                "nvcc fails: {}\n{}{}",
                line_of(command),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ))
        }
    }

    /// Machine code and PTX for each of CUDAARCHS, written as for CMake (`80;90a-real`); by default
    /// for what every kernel here has a path for.
    fn architectures() -> Result<Vec<String>, String> {
        let given = env::var("CUDAARCHS").ok().filter(|list| !list.is_empty());
        let list = given.as_deref().unwrap_or("80;90");
        list.split([';', ','])
            .map(|entry| {
                let (arch, kind) = entry.split_once('-').unwrap_or((entry, ""));
                let digits = arch.trim_end_matches(|c: char| c.is_ascii_lowercase());
                if digits.parse::<u32>().is_ok_and(|arch| arch >= 80) {
                    let code = match kind {
                        "" => format!("[sm_{arch},compute_{arch}]"),
                        "real" => format!("sm_{arch}"),
                        "virtual" => format!("compute_{arch}"),
                        _ => return Err(()),
                    };
                    Ok(format!("-gencode=arch=compute_{arch},code={code}"))
                } else {
                    Err(())
                }
            })
            .collect::<Result<_, _>>()
            .map_err(|()| {
                format!(
                    "CUDAARCHS is `{list}`; expected architectures from 80 up, as in `80;90a-real`"
                )
            })
    }

    /// A table of the images by name, and all that ptxas said.
    fn embed(names: &[String], out: &Path) -> Result<(), String> {
        let mut table = String::from("&[");
        let mut said = String::new();
        for name in names {
            let image = out.join(name).with_extension("fatbin");
            write!(table, "({name:?}, include_bytes!({image:?}) as &[u8]),").expect("a string");
            let report = out.join(name).with_extension("ptxas");
            said += &fs::read_to_string(report).map_err(|error| error.to_string())?;
        }
        table.push(']');
        fs::write(out.join("images.rs"), table).map_err(|error| error.to_string())?;
        fs::write(out.join("ptxas.txt"), said).map_err(|error| error.to_string())
    }
}
