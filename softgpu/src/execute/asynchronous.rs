//! Dispatch of what asynchronous engines do, and of the barriers that they complete.

use super::{Flow, Machine, Result};
use crate::ir::asynchronous::Asynchronous;
use crate::warp::{Group, Warp};

impl Machine<'_> {
    pub(super) fn asynchronous(
        &mut self,
        warp: &mut Warp,
        operation: &Asynchronous,
        mask: u32,
        group: Group,
    ) -> Result<Flow> {
        use Asynchronous as A;
        let pc = group.pc;
        match operation {
            A::Init { barrier, count } => {
                self.init_gate(warp, *barrier, Some(*count), mask, pc)?;
            }
            A::Invalidate { barrier } => self.init_gate(warp, *barrier, None, mask, pc)?,
            A::Arrive(arrive) => self.arrive(warp, arrive, mask, pc)?,
            A::Test {
                d,
                barrier,
                phase,
                acquire,
            } => {
                if self.test_gate(warp, (*d, *barrier), (phase, *acquire), mask, pc)? {
                    return Ok(Flow::Yield);
                }
            }
            A::PendingCount { d, state } => self.pending_count(warp, (*d, *state), mask, pc)?,
            A::ArriveOnCopies { barrier, noinc } => {
                self.arrive_on_copies(warp, *barrier, *noinc, mask, pc)?;
            }
            A::BulkLoad {
                source,
                to,
                barrier,
                multicast,
            } => {
                self.bulk_load(warp, source, (*to, *barrier, *multicast), mask, pc)?;
            }
            A::BulkStore { target, from } => self.bulk_store(warp, target, *from, mask, pc)?,
            A::CommitBulk => self.commit_bulk(warp, mask),
            A::WaitBulk { groups, read } => self.wait_bulk(warp, *groups, *read, mask)?,
            A::Wgmma(matrix) => self.wgmma(warp, matrix, mask, pc)?,
            A::WgmmaFence => self.wgmma_fence(warp),
            A::WgmmaCommit => self.wgmma_commit(warp),
            A::WgmmaWait(groups) => self.wgmma_wait(warp, *groups)?,
        }
        Ok(Flow::Next)
    }
}
