//! Threads, blocks and lines by name, for reports.

use super::Machine;
use crate::fault::Site;
use crate::warp::Warp;

impl Machine<'_> {
    /// The indices of a linear number in a shape.
    pub(crate) fn unravel(number: u32, shape: [u32; 3]) -> [u32; 3] {
        let x = number % shape[0].max(1);
        let rest = number / shape[0].max(1);
        [x, rest % shape[1].max(1), rest / shape[1].max(1)]
    }

    /// Where a lane of a warp is.
    pub(crate) fn site(&self, warp: &Warp, lane: u32, pc: u32, action: &str) -> Site {
        Site {
            action: action.into(),
            kernel: self.kernel.name.to_string(),
            block: self.blocks[warp.block].index,
            thread: (lane < 32).then(|| Self::unravel(warp.index * 32 + lane, self.block_shape)),
            location: self.kernel.code.location(pc),
        }
    }

    /// Where a thread was, from its number in the launch.
    pub(crate) fn site_of(&self, thread: u32, pc: u16, action: String) -> Site {
        let (serial, lane) = (thread / 32, thread % 32);
        let per_block = self.warps + 1;
        let sequence = (serial / per_block) as usize;
        let warp = serial % per_block;
        let linear = self.sequence.get(sequence).copied().unwrap_or(0);
        Site {
            action,
            kernel: self.kernel.name.to_string(),
            block: Self::unravel(linear, self.grid),
            thread: (warp < self.warps).then(|| Self::unravel(warp * 32 + lane, self.block_shape)),
            location: match pc {
                u16::MAX => "an unknown line".into(),
                pc => self.kernel.code.location(pc.into()),
            },
        }
    }
}
