//! Chapters "Initialization", "Version Management", "Device Management" and "Profiler Control".

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::Ordering;

use super::abi::{In, Out, complain, entry};
use super::clock::lock;
use super::context;
use super::driver;
use super::error::{CuError, CuResult};
use crate::image::Arch;

/// The driver API that these files follow.
const VERSION: c_int = 13_000;
const NAME: &[u8] = b"softgpu";

/// What the manual and NVIDIA's data sheets say of a device, as far as softgpu keeps to it.
pub struct Limits {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory of a multiprocessor, bytes.
    pub shared_per_multiprocessor: u32,
    /// The most shared memory of a block, once its kernel's attribute allows it, bytes.
    pub shared_per_block_optin: u32,
    l2_bytes: u32,
    clock_khz: u32,
    memory_clock_khz: u32,
}

/// Shared memory of a block without the attribute, bytes.
pub const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Shared memory that a block takes on top of its own, bytes.
pub const SHARED_RESERVED: u32 = 1024;
/// The most threads of a block.
pub const THREADS_PER_BLOCK: u32 = 1024;
/// The most threads of a multiprocessor.
pub const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
/// The most blocks of a multiprocessor.
pub const BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
/// Registers of a multiprocessor and of a block.
pub const REGISTERS: u32 = 65536;

/// The limits of the device that is reported: an A100 (SXM) or an H100 (SXM).
pub fn limits() -> Limits {
    if driver().arch < Arch::SM_90 {
        Limits {
            multiprocessors: 108,
            shared_per_multiprocessor: 164 << 10,
            shared_per_block_optin: 163 << 10,
            l2_bytes: 40 << 20,
            clock_khz: 1_410_000,
            memory_clock_khz: 1_593_000,
        }
    } else {
        Limits {
            multiprocessors: 132,
            shared_per_multiprocessor: 228 << 10,
            shared_per_block_optin: 227 << 10,
            l2_bytes: 50 << 20,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
        }
    }
}

/// The architecture that `SOFTGPU_ARCH` names; without it an H100's.
pub fn arch_from_environment() -> Arch {
    let Ok(name) = std::env::var("SOFTGPU_ARCH") else {
        return Arch::SM_90;
    };
    Arch::parse(&name).unwrap_or_else(|| {
        complain(
            "SOFTGPU_ARCH",
            &format!("{name:?} is not sm_80, sm_90 or sm_90a; sm_90a it is"),
        );
        Arch::SM_90
    })
}

/// The error for any device but the one there is.
pub fn valid_device(device: c_int) -> CuResult {
    if device == 0 {
        Ok(())
    } else {
        Err(CuError::INVALID_DEVICE)
    }
}

/// The value of an attribute by its number; 0 for what the device does not have.
fn attribute(number: c_int) -> CuResult<c_int> {
    let arch = driver().arch;
    let limits = limits();
    let hopper = u32::from(arch >= Arch::SM_90);
    let value: u32 = match number {
        1 => THREADS_PER_BLOCK,
        2 | 3 => 1024, // block, x and y
        4 => 64,       // block, z
        5 => 0x7FFF_FFFF,
        6 | 7 => 65535,
        8 => SHARED_PER_BLOCK,
        9 => 64 << 10, // constant memory
        10 => 32,      // warp
        11 => 0x7FFF_FFFF,
        12 | 82 => REGISTERS,
        13 => limits.clock_khz,
        14 => 512, // texture alignment
        15 | 31 | 40 | 41 | 78..=80 => 1,
        16 => limits.multiprocessors,
        19 => 1, // maps host memory
        30 | 51 => 32,
        36 => limits.memory_clock_khz,
        37 => 5120,
        38 => limits.l2_bytes,
        39 => THREADS_PER_MULTIPROCESSOR,
        75 => arch.major,
        76 => arch.minor,
        81 => limits.shared_per_multiprocessor,
        83 | 89 | 90 | 91 => 1, // managed memory, also while kernels run; preemption; host pointers
        87 => 2,                // single to double precision
        95 => 1,                // cooperative launch
        97 => limits.shared_per_block_optin,
        99 => 0, // cuMemHostRegister
        106 => BLOCKS_PER_MULTIPROCESSOR,
        111 => SHARED_RESERVED,
        115 => 1,            // memory pools
        120 | 127 => hopper, // clusters, tensor maps
        other if !(1..=161).contains(&other) => return Err(CuError::INVALID_VALUE),
        _ => 0,
    };
    // No value above reaches 2^31.
    Ok(value as c_int)
}

fn uuid(out: &Out<[u8; 16]>, device: c_int) -> CuResult {
    context::initialised()?;
    valid_device(device)?;
    let mut uuid = *b"softgpu\0\0\0\0\0\0\0\0\0";
    uuid[15] = driver().arch.number() as u8;
    out.put(uuid)
}

entry! {
    /// Everything else comes after this.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        driver().initialised.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The version of the API.
    fn cuDriverGetVersion(out: Out<c_int>) {
        out.put(VERSION)
    }

    /// NVIDIA's private tables, of which there are none. NVRTC asks for one whenever it finds a
    /// driver, and does without where it is refused, but crashes where this function is missing.
    fn cuGetExportTable(out: Out<usize>, _uuid: In<[u8; 16]>) {
        out.put(0)?;
        Err(CuError::NOT_FOUND)
    }

    /// The device of an ordinal: there is one, 0.
    fn cuDeviceGet(out: Out<c_int>, ordinal: c_int) {
        context::initialised()?;
        valid_device(ordinal)?;
        out.put(ordinal)
    }

    /// One.
    fn cuDeviceGetCount(out: Out<c_int>) {
        context::initialised()?;
        out.put(1)
    }

    /// `softgpu`, so that a test can tell what ran it.
    fn cuDeviceGetName(out: Out<c_char>, len: c_int, device: c_int) {
        context::initialised()?;
        valid_device(device)?;
        let room = usize::try_from(len).ok().and_then(|len| len.checked_sub(1));
        let shown = &NAME[..room.ok_or(CuError::INVALID_VALUE)?.min(NAME.len())];
        let bytes: Vec<c_char> = shown.iter().map(|byte| *byte as c_char).chain([0]).collect();
        out.put_all(bytes.into_iter())
    }

    /// A number of the device.
    fn cuDeviceGetUuid(out: Out<[u8; 16]>, device: c_int) {
        uuid(&out, device)
    }

    /// A number of the device.
    fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, device: c_int) {
        uuid(&out, device)
    }

    /// Device memory, bytes.
    fn cuDeviceTotalMem_v2(out: Out<usize>, device: c_int) {
        context::initialised()?;
        valid_device(device)?;
        out.put(lock(&driver().memory).info().1 as usize)
    }

    /// A property of the device.
    fn cuDeviceGetAttribute(out: Out<c_int>, number: c_int, device: c_int) {
        context::initialised()?;
        valid_device(device)?;
        out.put(attribute(number)?)
    }

    /// The compute capability.
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) {
        context::initialised()?;
        valid_device(device)?;
        major.put(driver().arch.major as c_int)?;
        minor.put(driver().arch.minor as c_int)
    }

    /// There is no second device.
    fn cuDeviceCanAccessPeer(out: Out<c_int>, device: c_int, peer: c_int) {
        context::initialised()?;
        valid_device(device)?;
        valid_device(peer)?;
        out.put(0)
    }

    /// There is no profiler.
    fn cuProfilerStart() {
        context::current().map(drop)
    }

    /// There is no profiler.
    fn cuProfilerStop() {
        context::current().map(drop)
    }
}
