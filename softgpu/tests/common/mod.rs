//! The kernels of `tests/kernels` on the device at hand: compiled once, loaded, launched.

#![allow(
    dead_code,
    reason = "every test file is a crate of its own and uses its part of this"
)]

pub mod shapes;
pub mod tensor_map;
pub mod toolkit;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError,
    LaunchArgs, LaunchConfig, ValidAsZeroBits,
};
use softgpu::Device;
use softgpu::launch::{Blocks, Copies, Schedule};

/// Whether the whole matrix of schedules and shapes is asked for.
pub fn full() -> bool {
    std::env::var_os("SOFTGPU_TESTS_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}

/// The six schedules of the matrix: every order of blocks with copies as early and as late as can be.
pub fn schedules() -> [Schedule; 6] {
    let mut all = [Schedule::default(); 6];
    for (i, schedule) in all.iter_mut().enumerate() {
        schedule.blocks = [Blocks::InOrder, Blocks::Reversed, Blocks::Random][i / 2];
        schedule.copies = [Copies::Early, Copies::Late][i % 2];
        schedule.seed = i as u64;
    }
    all
}

/// A device with one file of kernels loaded, for one test at a time: they share the default stream.
pub struct Gpu {
    pub stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    device: Device,
    _alone: MutexGuard<'static, ()>,
}

impl Gpu {
    /// Loads `tests/kernels/NAME.cu`; `None`, with a loud line, where there is no nvcc or where the
    /// device is older than the file's kernels.
    pub fn load(name: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let image = toolkit::image(name)?;
        let device = softgpu::install().expect("softgpu is installed");
        let context = CudaContext::new(0).expect("a context");
        let capability = context.compute_capability().expect("a capability");
        if name == "hopper" && capability != (9, 0) {
            eprintln!("SKIPPED: {name}.cu needs sm_90a and {device} is {capability:?}");
            return None;
        }
        let module = context
            .load_module(cudarc::nvrtc::Ptx::from_binary(image))
            .unwrap_or_else(|error| panic!("{name}.cu does not load on {device}: {error}"));
        let gpu = Self {
            stream: context.default_stream(),
            module,
            device,
            _alone: alone,
        };
        if device == Device::Softgpu {
            softgpu::set_unchecked(false);
        }
        gpu.follow(Schedule {
            blocks: Blocks::Random,
            copies: Copies::Random,
            seed: seed_of(name),
        });
        Some(gpu)
    }

    /// Sets the schedule, where there is one to set.
    pub fn follow(&self, schedule: Schedule) {
        if self.device == Device::Softgpu {
            softgpu::set_schedule(schedule);
        }
    }

    /// What softgpu counted in the last launch; `None` on a real device.
    pub fn counters(&self) -> Option<softgpu::counters::Counters> {
        (self.device == Device::Softgpu).then(|| softgpu::counters().expect("a launch"))
    }

    /// Runs `launch` under every schedule and returns its result, which must be the same to the bit
    /// under all of them.
    pub fn under_all_schedules<T: PartialEq>(&self, mut launch: impl FnMut() -> T) -> T {
        let mut first = None;
        for schedule in schedules() {
            self.follow(schedule);
            let result = launch();
            match &first {
                None => first = Some(result),
                Some(first) => assert!(
                    *first == result,
                    "{schedule:?} gives another result than {:?}",
                    schedules()[0]
                ),
            }
        }
        first.expect("six schedules")
    }

    /// The six schedules with `--full`, and on small shapes; the test's own seeded one otherwise.
    pub fn under_schedules<T: PartialEq>(&self, small: bool, mut launch: impl FnMut() -> T) -> T {
        if small || full() {
            self.under_all_schedules(launch)
        } else {
            launch()
        }
    }

    pub fn function(&self, name: &str) -> CudaFunction {
        self.module
            .load_function(name)
            .unwrap_or_else(|error| panic!("no kernel {name}: {error}"))
    }

    pub fn upload<T: DeviceRepr + Clone>(&self, values: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(values).expect("upload")
    }

    /// `len` elements that nobody has written.
    pub fn unwritten<T: DeviceRepr>(&self, len: usize) -> CudaSlice<T> {
        // SAFETY: the element types here are plain numbers: any bits are a value.
        unsafe { self.stream.alloc(len) }.expect("memory")
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> CudaSlice<T> {
        self.stream.alloc_zeros(len).expect("memory")
    }

    pub fn download<T: DeviceRepr + Clone + Default>(&self, values: &CudaSlice<T>) -> Vec<T> {
        self.stream
            .clone_dtoh(values)
            .unwrap_or_else(|error| panic!("download: {error}"))
    }
}

/// A launch of `blocks` blocks of `threads` threads in one dimension.
pub fn flat(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// `launch!(gpu, "name", configuration; arguments…)`: launches and panics on an error.
#[macro_export]
macro_rules! launch {
    ($gpu:expr, $name:expr, $configuration:expr; $($argument:expr),* $(,)?) => {{
        let function = $gpu.function($name);
        $crate::try_launch!($gpu, function, $configuration; $($argument),*)
            .unwrap_or_else(|error| panic!("{}: {error}", $name))
    }};
}

/// The same with a function that is loaded already, and with the result.
#[macro_export]
macro_rules! try_launch {
    ($gpu:expr, $function:expr, $configuration:expr; $($argument:expr),* $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        $crate::common::start(
            $gpu.stream.launch_builder(&$function)$(.arg($argument))*,
            $configuration,
        )
    }};
}

/// Launches what has its arguments.
pub fn start(launch: &mut LaunchArgs<'_>, configuration: LaunchConfig) -> Result<(), DriverError> {
    // SAFETY: the arguments are the kernel's, and what a kernel does wrong softgpu finds: that is
    // the purpose of these tests. On a real device only right kernels run.
    unsafe { launch.launch(configuration) }.map(|_| ())
}

fn seed_of(name: &str) -> u64 {
    name.bytes()
        .fold(17, |seed, byte| seed * 31 + u64::from(byte))
}

/// Reproducible pseudo-random numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    /// Words over their whole range.
    pub fn words(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.bits() as u32).collect()
    }

    /// Words below `limit`.
    pub fn below(&mut self, limit: u32, len: usize) -> Vec<u32> {
        (0..len)
            .map(|_| (self.bits() % u64::from(limit)) as u32)
            .collect()
    }

    /// Uniform in [−1, 1), on a grid of 2⁻²³.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// Integers from −`bound` to `bound`: sums of their products are exact in f32.
    pub fn small(&mut self, bound: i32, len: usize) -> Vec<f32> {
        let span = (2 * bound + 1) as u64;
        (0..len)
            .map(|_| ((self.bits() % span) as i32 - bound) as f32)
            .collect()
    }
}
