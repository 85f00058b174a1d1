//! The GPU path of the library: on softgpu, or with `REQUIRE_GPU=1` on the machine's own GPU.

use std::sync::OnceLock;

use hardmix::cuda::Device;
use softgpu::launch::{Blocks, Copies, Schedule};

/// The device of this process, with softgpu installed first unless a GPU is asked for.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let found = softgpu::install().expect("softgpu is installed");
        let device = Device::new(0).expect("a device");
        let name = device.stream().context().name().expect("a name");
        println!("cuda on {found}: {name}");
        device
    })
}

/// Whether kernels run on softgpu, where shapes have to be small.
pub fn is_softgpu() -> bool {
    device();
    softgpu::install().is_ok_and(|found| found == softgpu::Device::Softgpu)
}

/// Runs `launch` under six schedules of softgpu, every order of blocks with copies as early and as
/// late as can be, and returns its result, which must be the same to the bit under all of them. On a
/// GPU it runs as often, and no schedule is set.
pub fn under_all_schedules<T: PartialEq>(mut launch: impl FnMut() -> T) -> T {
    let mut first = None;
    for at in 0..6 {
        let schedule = Schedule {
            blocks: [Blocks::InOrder, Blocks::Reversed, Blocks::Random][at / 2],
            copies: [Copies::Early, Copies::Late][at % 2],
            seed: at as u64,
        };
        if is_softgpu() {
            softgpu::set_schedule(schedule);
        }
        let result = launch();
        match &first {
            None => first = Some(result),
            Some(first) => assert!(*first == result, "{schedule:?} gives another result"),
        }
    }
    first.expect("six schedules")
}
