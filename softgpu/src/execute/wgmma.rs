//! `wgmma`: each warp computes its 16 rows of the warpgroup's product.

use super::landing::{Landing, Target};
use super::race::Access;
use super::{Machine, Origin, Result};
use crate::fault::{Fault, Kind};
use crate::ir::Touched;
use crate::ir::asynchronous::WarpgroupMatrix;
use crate::launch::Copies;
use crate::tensor::descriptor::Descriptor;
use crate::tensor::pipe::{Issue, Misuse, Pipe};
use crate::tensor::wgmma::OperandA;
use crate::warp::Warp;

impl Machine<'_> {
    /// `wgmma.mma_async`.
    pub(super) fn wgmma(
        &mut self,
        warp: &mut Warp,
        matrix: &WarpgroupMatrix,
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let lane = mask.trailing_zeros() as usize & 31;
        let wide = |index: u32| warp.registers.row::<u64>(index)[lane];
        let a = match matrix.a {
            Some(index) => OperandA::Shared(Descriptor::decode(wide(index))),
            None => {
                let mut rows = [[0; 32]; 4];
                for (row, index) in rows.iter_mut().zip(matrix.a_registers.iter()) {
                    *row = *warp.registers.row::<u32>(*index);
                }
                OperandA::Registers(Box::new(rows))
            }
        };
        let (p, negated) = matrix.keep;
        let bits = warp.registers.predicate(p) ^ if negated { !0 } else { 0 };
        let issue = Issue {
            operation: matrix.form,
            warp: warp.index % 4,
            accumulators: matrix.accumulators.clone(),
            a_registers: matrix.a_registers.clone(),
            a,
            b: Descriptor::decode(wide(matrix.b)),
            keep: bits >> lane & 1 != 0,
            origin: Self::origin(warp, lane, pc),
        };
        if let Err(misuse) = self.pipe(warp).check(&issue)
            && let Some(fault) = self.wgmma_misuse(warp, misuse, pc, "multiplies")
        {
            return Err(fault);
        }
        self.counters.tensor_operations += matrix.form.operations();
        if self.copies != Copies::Early {
            // What it may read at any moment from now on must be there, and ordered.
            issue
                .operation
                .for_each_address(issue.warp, &issue.a, issue.b, |address| {
                    self.read_operand(warp, address, lane, pc).map(drop)
                })?;
        }
        self.with_pipe(warp, |pipe, registers, read| {
            pipe.issue(issue, registers, read)
        })
    }

    /// `wgmma.fence`.
    pub(super) fn wgmma_fence(&mut self, warp: &mut Warp) {
        self.pipe(warp).fence();
    }

    /// `wgmma.commit_group`.
    pub(super) fn wgmma_commit(&mut self, warp: &mut Warp) {
        self.pipe(warp).commit();
    }

    /// `wgmma.wait_group`.
    pub(super) fn wgmma_wait(&mut self, warp: &mut Warp, groups: u32) -> Result<()> {
        self.with_pipe(warp, |pipe, registers, read| {
            pipe.wait(groups as usize, registers, read)
        })
    }

    /// An ordinary instruction uses registers that some wgmma of the kernel uses.
    pub(super) fn wgmma_access(
        &mut self,
        warp: &mut Warp,
        touched: &Touched,
        pc: u32,
    ) -> Result<()> {
        let Some(pipe) = &mut warp.pipe else {
            return Ok(());
        };
        let access = if touched.is_move {
            pipe.copy(&touched.registers)
        } else {
            pipe.access(&touched.registers)
        };
        match access {
            Ok(()) => Ok(()),
            Err(misuse) => match self.wgmma_misuse(warp, misuse, pc, "uses it") {
                Some(fault) => Err(fault),
                None => Ok(()),
            },
        }
    }

    fn pipe<'w>(&self, warp: &'w mut Warp) -> &'w mut Pipe<Origin> {
        let (copies, seed) = (self.copies, self.seed);
        warp.pipe
            .get_or_insert_with(|| Box::new(Pipe::new(copies, seed ^ u64::from(warp.serial))))
    }

    /// Runs `f` with the warp's operations in flight, its registers and a reader of its shared
    /// memory.
    fn with_pipe(
        &mut self,
        warp: &mut Warp,
        f: impl FnOnce(
            &mut Pipe<Origin>,
            &mut [[u32; 32]],
            &mut crate::tensor::pipe::Read<Origin>,
        ) -> Result<()>,
    ) -> Result<()> {
        self.pipe(warp);
        let Some(mut pipe) = warp.pipe.take() else {
            return Ok(());
        };
        let mut registers = std::mem::take(&mut warp.registers.narrow);
        let result = f(&mut pipe, &mut registers, &mut |origin, address, out| {
            let lane = origin.thread as usize & 31;
            *out = self.read_operand(warp, address, lane, origin.at.into())?;
            self.counters.shared_bytes += 16;
            Ok(())
        });
        warp.registers.narrow = registers;
        warp.pipe = Some(pipe);
        result
    }

    /// Reads a chunk of an operand, with the checks of an access by the asynchronous proxy.
    fn read_operand(
        &mut self,
        warp: &mut Warp,
        address: u32,
        lane: usize,
        pc: u32,
    ) -> Result<[u8; 16]> {
        let landing = Landing {
            target: Target::Shared(warp.block),
            base: 0,
            mask: 1 << lane,
        };
        let access = Access::READ;
        self.check_in_flight(warp, address, 16, lane, pc)?;
        let range = (address.into(), 16);
        self.check_proxy(warp, landing, lane, range, pc)?;
        self.touch(warp, landing, lane, range, access, pc)?;
        let from = address as usize;
        let bytes = self.blocks[warp.block].shared.bytes.get(from..from + 16);
        Ok(bytes
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; 16]))
    }

    /// The fault for a misuse of registers, unless its check is switched off.
    #[cold]
    fn wgmma_misuse(
        &self,
        warp: &Warp,
        misuse: Misuse<Origin>,
        pc: u32,
        action: &str,
    ) -> Option<Fault> {
        let lane = warp.alive.trailing_zeros();
        let site = || self.site(warp, lane, pc, action);
        match misuse {
            Misuse::InFlight(_, origin) if self.flags.copies => {
                let what = "a register of a wgmma in flight is used before wgmma.wait_group";
                let earlier = self.site_of(origin.thread, origin.at, "started the wgmma".into());
                Some(Fault::new(Kind::AsyncCopy, what).at(site()).at(earlier))
            }
            Misuse::Unfenced(_) if self.flags.proxies => {
                let what = "wgmma is given a register that was used since the last wgmma.fence, \
                            or there was none (the compiler may have moved the use behind the \
                            fence: an empty asm with the register as operand holds it)";
                Some(Fault::new(Kind::MissingProxyFence, what).at(site()))
            }
            _ => None,
        }
    }
}
