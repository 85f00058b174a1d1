//! Chapter "Graph Management": stream capture, and replay of what was captured.

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::sync::{Arc, Mutex};

use super::abi::{Out, entry};
use super::clock::{Line, Moment, lock};
use super::context;
use super::error::{CuError, CuResult};
use super::stream::{Stream, working_stream};
use super::work::Work;
use super::{Handle, driver};

const AUTO_FREE_ON_LAUNCH: c_ulonglong = 1;
const DEVICE_LAUNCH: c_ulonglong = 4;
const KNOWN_FLAGS: c_ulonglong = 15;

/// How `cuStreamIsCapturing` tells the states of a stream.
const NOT_CAPTURING: c_int = 0;
const CAPTURING: c_int = 1;
const CAPTURE_INVALIDATED: c_int = 2;

/// Captured work and what it comes after, in an order that respects that.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Mutex<Vec<Node>>,
}

#[derive(Clone, Debug)]
struct Node {
    work: Arc<Work>,
    after: Vec<usize>,
}

/// A capture in progress, which streams join through events.
#[derive(Debug, Default)]
struct Capture {
    nodes: Vec<Node>,
    streams: Vec<Arc<Stream>>,
    invalid: bool,
    over: bool,
}

/// A stream's part in a capture.
#[derive(Debug)]
pub struct Capturing {
    branch: Branch,
    /// Whether the capture began on this stream, where it must end.
    origin: bool,
}

/// A point in a capture: the nodes that what follows comes after.
#[derive(Clone, Debug)]
pub struct Branch {
    capture: Arc<Mutex<Capture>>,
    tail: Vec<usize>,
}

impl Capturing {
    /// Adds work to the graph, after what this stream captured before.
    pub fn add(&mut self, work: Work) -> CuResult {
        let mut capture = lock(&self.branch.capture);
        if capture.invalid {
            return Err(CuError::STREAM_CAPTURE_INVALIDATED);
        }
        if !work.can_be_captured() {
            capture.invalid = true;
            return Err(CuError::STREAM_CAPTURE_UNSUPPORTED);
        }
        let after = std::mem::take(&mut self.branch.tail);
        capture.nodes.push(Node {
            work: Arc::new(work),
            after,
        });
        self.branch.tail.push(capture.nodes.len() - 1);
        Ok(())
    }

    /// The capture failed; ending it will say so.
    pub fn invalidate(&mut self) {
        self.branch.invalidate();
    }

    /// This stream's present point in the capture.
    pub fn branch(&self) -> Branch {
        self.branch.clone()
    }
}

impl Branch {
    /// The capture failed; ending it will say so.
    pub fn invalidate(&self) {
        lock(&self.capture).invalid = true;
    }

    /// Makes what `stream` captures next come after this point; the stream joins the capture.
    pub fn join(&self, stream: &Arc<Stream>, legacy: bool) -> CuResult {
        if lock(&self.capture).over {
            return Err(CuError::CAPTURED_EVENT);
        }
        if legacy {
            self.invalidate();
            return Err(CuError::STREAM_CAPTURE_IMPLICIT);
        }
        let joined = stream.with_capture(|part| match part {
            None => {
                *part = Some(Capturing {
                    branch: self.clone(),
                    origin: false,
                });
                Ok(true)
            }
            Some(part) if Arc::ptr_eq(&part.branch.capture, &self.capture) => {
                part.branch.tail.extend(&self.tail);
                part.branch.tail.sort_unstable();
                part.branch.tail.dedup();
                Ok(false)
            }
            Some(part) => {
                part.invalidate();
                self.invalidate();
                Err(CuError::STREAM_CAPTURE_MERGE)
            }
        })?;
        if joined {
            lock(&self.capture).streams.push(Arc::clone(stream));
        }
        Ok(())
    }
}

/// Whether every node comes before the end of the capture on its origin.
fn all_joined(nodes: &[Node], tail: &[usize]) -> bool {
    let mut reached = vec![false; nodes.len()];
    for at in tail {
        reached[*at] = true;
    }
    for at in (0..nodes.len()).rev() {
        if reached[at] {
            nodes[at]
                .after
                .iter()
                .for_each(|before| reached[*before] = true);
        }
    }
    reached.into_iter().all(|reached| reached)
}

fn begin(stream: &Arc<Stream>, legacy: bool) -> CuResult {
    if legacy {
        return Err(CuError::STREAM_CAPTURE_UNSUPPORTED);
    }
    stream.with_capture(|part| {
        if part.is_some() {
            return Err(CuError::ILLEGAL_STATE);
        }
        let branch = Branch {
            capture: Arc::default(),
            tail: Vec::new(),
        };
        *part = Some(Capturing {
            branch,
            origin: true,
        });
        Ok(())
    })
}

fn end(stream: &Arc<Stream>) -> CuResult<Graph> {
    let part = stream.with_capture(|part| match part {
        None => Err(CuError::ILLEGAL_STATE),
        Some(part) if !part.origin => {
            part.invalidate();
            Err(CuError::STREAM_CAPTURE_UNMATCHED)
        }
        Some(_) => Ok(part.take()),
    })?;
    let Some(Capturing { branch, .. }) = part else {
        return Err(CuError::ILLEGAL_STATE);
    };
    let (nodes, streams, invalid) = {
        let mut capture = lock(&branch.capture);
        capture.over = true;
        (
            std::mem::take(&mut capture.nodes),
            std::mem::take(&mut capture.streams),
            capture.invalid,
        )
    };
    for other in streams {
        other.with_capture(|part| *part = None);
    }
    if invalid {
        return Err(CuError::STREAM_CAPTURE_INVALIDATED);
    }
    if !all_joined(&nodes, &branch.tail) {
        return Err(CuError::STREAM_CAPTURE_UNJOINED);
    }
    Ok(Graph {
        nodes: Mutex::new(nodes),
    })
}

/// A graph ready to run.
#[derive(Debug)]
pub struct GraphExec {
    nodes: Vec<Node>,
    /// Each node's line in the vector clocks: chains share one.
    line_of: Vec<usize>,
    lines: Vec<Line>,
}

impl GraphExec {
    fn new(graph: &Graph) -> GraphExec {
        let nodes = lock(&graph.nodes).clone();
        let mut line_of: Vec<usize> = Vec::with_capacity(nodes.len());
        let mut ends: Vec<usize> = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            // Go on with a line whose last node this one comes after.
            let line = ends
                .iter()
                .position(|end| node.after.contains(end))
                .unwrap_or(ends.len());
            if line == ends.len() {
                ends.push(at);
            }
            ends[line] = at;
            line_of.push(line);
        }
        let lines = ends.iter().map(|_| Line::new()).collect();
        GraphExec {
            nodes,
            line_of,
            lines,
        }
    }

    /// Whether some node waits for the host.
    pub fn may_block(&self) -> bool {
        self.nodes.iter().any(|node| node.work.may_block())
    }

    /// Runs every node after those it depends on; the stream goes on after all of them.
    pub fn run(&self, reached: &Mutex<Moment>) {
        let start = lock(reached).clone();
        let mut ends: Vec<Moment> = Vec::with_capacity(self.nodes.len());
        for (node, line) in self.nodes.iter().zip(&self.line_of) {
            let mut moment = start.clone();
            node.after
                .iter()
                .for_each(|before| moment.join(&ends[*before]));
            let moment = Mutex::new(moment);
            node.work.run(&self.lines[*line], &moment);
            ends.push(lock(&moment).clone());
        }
        let mut reached = lock(reached);
        ends.iter().for_each(|end| reached.join(end));
    }
}

fn instantiate(out: &Out<Handle>, graph: Handle, flags: c_ulonglong) -> CuResult {
    context::current()?;
    let graph = driver().graphs.get(graph)?;
    let both = AUTO_FREE_ON_LAUNCH | DEVICE_LAUNCH;
    if flags & !KNOWN_FLAGS != 0 || flags & both == both {
        return Err(CuError::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(CuError::NOT_SUPPORTED);
    }
    out.put(driver().graph_execs.add(GraphExec::new(&graph)))
}

entry! {
    /// From here on the stream's work goes into a graph.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) {
        let (context, stream) = working_stream(stream)?;
        if mode > 2 {
            return Err(CuError::INVALID_VALUE);
        }
        begin(&stream, Arc::ptr_eq(&stream, &context.legacy))
    }

    /// Ends the capture and gives the graph.
    fn cuStreamEndCapture(stream: Handle, out: Out<Handle>) {
        let (_, stream) = working_stream(stream)?;
        match end(&stream) {
            Ok(graph) => out.put(driver().graphs.add(graph)),
            Err(error) => {
                out.put_if_wanted(0);
                Err(error)
            }
        }
    }

    /// Whether the stream's work goes into a graph.
    fn cuStreamIsCapturing(stream: Handle, out: Out<c_int>) {
        let (_, stream) = working_stream(stream)?;
        out.put(stream.with_capture(|part| match part {
            None => NOT_CAPTURING,
            Some(part) if lock(&part.branch.capture).invalid => CAPTURE_INVALIDATED,
            Some(_) => CAPTURING,
        }))
    }

    /// An empty graph.
    fn cuGraphCreate(out: Out<Handle>, flags: c_uint) {
        context::current()?;
        if flags != 0 {
            return Err(CuError::INVALID_VALUE);
        }
        out.put(driver().graphs.add(Graph::default()))
    }

    /// Forgets a graph; what was instantiated from it stays.
    fn cuGraphDestroy(graph: Handle) {
        driver().graphs.remove(graph).map(drop)
    }

    /// The number of nodes; they have no handles here.
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let graph = driver().graphs.get(graph)?;
        if !nodes.is_null() {
            return Err(CuError::NOT_SUPPORTED);
        }
        count.put(lock(&graph.nodes).len())
    }

    /// Makes a graph ready to run.
    fn cuGraphInstantiateWithFlags(out: Out<Handle>, graph: Handle, flags: c_ulonglong) {
        instantiate(&out, graph, flags)
    }

    /// Forgets what was instantiated.
    fn cuGraphExecDestroy(exec: Handle) {
        driver().graph_execs.remove(exec).map(drop)
    }

    /// Nothing needs to be sent ahead.
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        working_stream(stream)?;
        driver().graph_execs.get(exec).map(drop)
    }

    /// Runs the graph as one piece of the stream's work.
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        let (context, stream) = working_stream(stream)?;
        let exec = driver().graph_execs.get(exec)?;
        stream.submit(&context, Work::Graph(exec))
    }
}
