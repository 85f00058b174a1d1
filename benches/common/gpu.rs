//! A GPU to measure on, and its own clock.

use std::time::Duration;

use criterion::Bencher;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use hardmix::Result;
use hardmix::cuda::Device;

/// The GPU of this machine; where there is none, says so.
pub fn device() -> Option<Device> {
    let device = match Device::new(0) {
        Ok(device) => device,
        Err(error) => {
            println!("no GPU, nothing is measured: {error}");
            return None;
        }
    };
    let name = device.stream().context().name().expect("the device's name");
    if name == "softgpu" {
        println!("no GPU, nothing is measured: {name} interprets");
        return None;
    }
    println!("on {name}");
    Some(device)
}

/// Times what is put on the stream, without the host's share of it where the device is behind.
pub fn by_events(bencher: &mut Bencher, device: &Device, mut work: impl FnMut() -> Result<()>) {
    let stream = device.stream();
    bencher.iter_custom(|iterations| {
        let start = stream
            .record_event(Some(CU_EVENT_DEFAULT))
            .expect("an event");
        for _ in 0..iterations {
            work().expect("valid input");
        }
        let end = stream
            .record_event(Some(CU_EVENT_DEFAULT))
            .expect("an event");
        let milliseconds = start.elapsed_ms(&end).expect("both have been recorded");
        Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
    });
}
