//! What streams do: launches, transfers, frees, marks and waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::abi::{HostPtr, panic_message};
use super::clock::{Line, Moment, lock};
use super::driver;
use super::event::Record;
use super::graph::GraphExec;
use super::launch::Launch;
use super::stream::HostFunction;
use super::transfer::{Copy, Fill};
use crate::fault::Fault;
use crate::memory::Order;

/// One piece of a stream's work.
#[derive(Debug)]
pub enum Work {
    /// A kernel.
    Launch(Box<Launch>),
    /// A copy, between any two places.
    Copy(Copy),
    /// A memset.
    Fill(Fill),
    /// The end of an allocation.
    Free(u64),
    /// An event comes.
    Record(Arc<Record>),
    /// An event is waited for.
    Wait(Arc<Record>),
    /// A function of the host is called.
    Host(HostFunction, HostPtr),
    /// A graph runs.
    Graph(Arc<GraphExec>),
}

impl Work {
    /// Whether it may have to wait for the host, so that the submitting thread must not run it.
    pub fn may_block(&self) -> bool {
        match self {
            Work::Wait(record) => record.moment().is_none(),
            Work::Host(..) => true,
            Work::Graph(graph) => graph.may_block(),
            _ => false,
        }
    }

    /// Whether it can be part of a graph.
    pub fn can_be_captured(&self) -> bool {
        !matches!(self, Work::Free(_) | Work::Record(_) | Work::Wait(_))
    }

    /// Does it as the next piece of `line`, after what `reached` knows.
    pub fn run(&self, line: &Line, reached: &Mutex<Moment>) {
        match self {
            Work::Record(record) => record.complete(lock(reached).clone()),
            Work::Wait(record) => {
                let moment = record.wait();
                lock(reached).join(&moment);
            }
            Work::Graph(graph) => graph.run(reached),
            // The device is as good as gone: nothing runs, and nobody who waits is kept waiting.
            _ if driver().check_sound().is_err() => {}
            // SAFETY: whoever called cuLaunchHostFunc vouches that the function may be called with
            // this argument, from any thread.
            Work::Host(function, data) => unsafe { function(data.as_ptr()) },
            Work::Launch(_) | Work::Copy(_) | Work::Fill(_) | Work::Free(_) => {
                let order = {
                    let mut reached = lock(reached);
                    line.begin(&mut reached.clock);
                    Order {
                        stream: line.slot() as u32,
                        clock: reached.clock.ticks().to_vec(),
                    }
                };
                // A panic must neither cross the ABI nor end the thread that empties a stream.
                match catch_unwind(AssertUnwindSafe(|| self.on_device(&order))) {
                    Ok(Ok(nanos)) => lock(reached).nanos += nanos,
                    Ok(Err(fault)) => driver().fail(&fault),
                    Err(panic) => driver().give_up(panic_message(&*panic)),
                }
            }
        }
    }

    /// Does what needs the device; returns the modelled time, nanoseconds.
    fn on_device(&self, order: &Order) -> Result<u64, Fault> {
        match self {
            Work::Launch(launch) => launch.run(order),
            Work::Copy(copy) => copy.run(order),
            Work::Fill(fill) => fill.run(order),
            Work::Free(address) => lock(&driver().memory)
                .free_in_order(*address, order)
                .map(|()| 0),
            _ => Ok(0),
        }
    }
}
