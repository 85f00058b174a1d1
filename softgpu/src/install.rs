//! Making softgpu what this process finds when it looks for a CUDA driver.

use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// What the loader knows the driver as.
const DRIVER: &str = "libcuda.so";
/// The file that cargo makes of this crate.
const FILE: &str = "libsoftgpu.so";
/// A symbol that no other driver has.
const MARK: &CStr = c"softgpu_set_schedule";

/// What CUDA calls of this process run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// This crate's shared library.
    Softgpu,
    /// The machine's own driver, as `REQUIRE_GPU` asks.
    Gpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Softgpu => "softgpu",
            Device::Gpu => "the machine's GPU",
        })
    }
}

/// Why softgpu could not be installed.
#[derive(Debug)]
#[non_exhaustive]
pub enum InstallError {
    /// The shared library was not found beside the running program; these places were tried.
    NotFound(Vec<PathBuf>),
    /// The loader refused it.
    Load(libloading::Error),
    /// Another driver was loaded before, and `libcuda.so` names that one.
    Shadowed,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstallError::NotFound(tried) => {
                write!(
                    f,
                    "{FILE} not found; cargo puts it beside the tests of a crate that depends on softgpu; tried"
                )?;
                tried
                    .iter()
                    .try_for_each(|path| write!(f, " {}", path.display()))
            }
            InstallError::Load(error) => write!(f, "{FILE} could not be loaded: {error}"),
            InstallError::Shadowed => {
                write!(
                    f,
                    "another CUDA driver was loaded before softgpu; install it first"
                )
            }
        }
    }
}

impl std::error::Error for InstallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            InstallError::Load(error) => Some(error),
            _ => None,
        }
    }
}

/// Makes softgpu the CUDA driver of this process: whoever looks for `libcuda.so` from now on finds
/// it. To be called before anything does; more than once is harmless.
///
/// With `REQUIRE_GPU` set (to anything but `0`) nothing is installed, and tests run on the
/// machine's own driver or fail.
///
/// # Errors
/// When the shared library is missing, does not load, or comes too late.
pub fn install() -> Result<Device, InstallError> {
    if std::env::var("REQUIRE_GPU").is_ok_and(|value| !value.is_empty() && value != "0") {
        return Ok(Device::Gpu);
    }
    static KEPT: OnceLock<Library> = OnceLock::new();
    let library = open(find()?.as_os_str()).map_err(InstallError::Load)?;
    // Dropping a second handle only lowers the loader's count.
    KEPT.get_or_init(|| library);
    let found = open(DRIVER).map_err(InstallError::Load)?;
    if is_softgpu(&found) {
        Ok(Device::Softgpu)
    } else {
        Err(InstallError::Shadowed)
    }
}

/// The shared library beside the running program, where cargo puts it.
fn find() -> Result<PathBuf, InstallError> {
    let program = std::env::current_exe().unwrap_or_default();
    let here = program.parent().unwrap_or(Path::new("."));
    let places = [
        here.join(FILE),
        here.join("deps").join(FILE),
        here.join("../deps").join(FILE),
    ];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.ok_or_else(|| InstallError::NotFound(places.into()))
}

fn open(name: impl AsRef<std::ffi::OsStr>) -> Result<Library, libloading::Error> {
    // SAFETY: what is loaded is this crate, or a CUDA driver that the process would load anyway;
    // loading either runs no code that asks anything of us.
    unsafe { Library::open(Some(name.as_ref()), RTLD_NOW | RTLD_LOCAL) }
}

fn is_softgpu(library: &Library) -> bool {
    // SAFETY: the symbol is only looked for.
    unsafe { library.get::<*const ()>(MARK.to_bytes_with_nul()) }.is_ok()
}

/// A function that the loaded softgpu exports.
///
/// # Safety
/// `F` is the type of that function.
///
/// # Panics
/// Where softgpu is not the driver of this process.
pub(crate) unsafe fn symbol<F: Copy>(name: &CStr) -> F {
    static LOADED: OnceLock<Library> = OnceLock::new();
    let library = LOADED.get_or_init(|| {
        let library = open(DRIVER).ok().filter(is_softgpu);
        library
            .expect("softgpu is not the CUDA driver of this process; call softgpu::install first")
    });
    // SAFETY: the caller's contract.
    let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
    *found.expect("softgpu exports its controls")
}
