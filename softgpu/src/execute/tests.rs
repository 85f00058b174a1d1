//! Small kernels, by hand.

use crate::check::{Check, Checks};
use crate::fault::{Fault, Kind};
use crate::ir::Module;
use crate::launch::{Blocks, Copies, Launch, Options, Schedule, run};
use crate::memory::{Memory, Order};

/// A kernel with parameters `out` and `input` (both pointers), and its body.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{declarations}\n\
         .visible .entry k(.param .u64 out, .param .u64 input)\n{{\n\
         .reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<40>; .reg .f32 %f<20>;\n\
         .reg .b64 %rd<20>; .reg .f64 %fd<10>;\n\
         ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [input];\n\
         cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2;\n\
         mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;\n\
         mad.lo.s32 %r4, %r2, %r3, %r1;\n\
         mul.wide.u32 %rd3, %r4, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;\n\
         {body}\nret;\n}}\n"
    )
}

struct Run {
    ptx: String,
    grid: u32,
    block: u32,
    input: Vec<u32>,
    out: usize,
    options: Options,
    cooperative: bool,
    cluster: u32,
}

impl Run {
    fn new(declarations: &str, body: &str) -> Self {
        Self {
            ptx: kernel(declarations, body),
            grid: 1,
            block: 32,
            input: (0..4096).collect(),
            out: 4096,
            options: Options::default(),
            cooperative: false,
            cluster: 1,
        }
    }

    fn shape(mut self, grid: u32, block: u32) -> Self {
        (self.grid, self.block) = (grid, block);
        self
    }

    fn without(mut self, check: Check) -> Self {
        self.options.checks = self.options.checks.with(check, false);
        self
    }

    fn result(&self) -> Result<Vec<u32>, Fault> {
        let mut memory = Memory::new(1 << 30);
        let order = |time| Order {
            stream: 0,
            clock: vec![time],
        };
        let module = Module::load(&self.ptx, &mut memory)?;
        let out = memory.allocate(4 * self.out as u64)?;
        let input = memory.allocate(4 * self.input.len() as u64)?;
        let bytes: Vec<u8> = self.input.iter().flat_map(|x| x.to_le_bytes()).collect();
        memory.write(input, &bytes, &order(1))?;
        memory.fill(out, &[0; 4], self.out as u64, &order(2))?;
        let parameters: Vec<u8> = [out, input].iter().flat_map(|x| x.to_le_bytes()).collect();
        let launch = Launch {
            kernel: module.kernel("k").unwrap(),
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            cluster: [self.cluster, 1, 1],
            dynamic_shared: 1024,
            parameters: &parameters,
            cooperative: self.cooperative,
            order: &order(3),
        };
        run(&launch, &mut memory, &self.options)?;
        let mut bytes = vec![0; 4 * self.out];
        memory.read(out, &mut bytes, &order(4))?;
        Ok(bytes
            .chunks(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect())
    }

    /// The result, equal under every schedule.
    fn output(mut self) -> Vec<u32> {
        let mut all = Vec::new();
        for blocks in [Blocks::InOrder, Blocks::Reversed, Blocks::Random] {
            for copies in [Copies::Early, Copies::Late, Copies::Random] {
                for checks in [Checks::all(), Checks::unchecked()] {
                    self.options.schedule = Schedule {
                        blocks,
                        copies,
                        seed: 7,
                    };
                    self.options.checks = checks;
                    all.push(self.result().unwrap_or_else(|fault| panic!("{fault}")));
                }
            }
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        all.remove(0)
    }

    /// The fault that is found with `check`, and not without it.
    fn found_by(self, check: Check, kind: Kind) -> Fault {
        let fault = self.result().expect_err("the defect is found");
        assert_eq!(fault.kind, kind, "{fault}");
        let other = self.without(check).result();
        assert!(other.err().is_none_or(|fault| fault.kind != kind));
        fault
    }
}

const STORE: &str = "st.global.u32 [%rd4], %r10;";

#[test]
fn threads_know_where_they_are() {
    let body = format!("mad.lo.s32 %r10, %r2, 1000, %r1; {STORE}");
    let out = Run::new("", &body).shape(3, 40).output();
    assert_eq!((out[0], out[39], out[40], out[119]), (0, 39, 1000, 2039));
}

#[test]
fn lanes_part_and_meet() {
    // Collatz lengths: every lane loops another number of times.
    let body = "add.s32 %r5, %r4, 1; mov.u32 %r10, 0;
        loop: setp.eq.s32 %p1, %r5, 1; @%p1 bra done;
        and.b32 %r6, %r5, 1; setp.ne.s32 %p2, %r6, 0;
        @%p2 bra odd; shr.u32 %r5, %r5, 1; bra next;
        odd: mad.lo.s32 %r5, %r5, 3, 1;
        next: add.s32 %r10, %r10, 1; bra loop;
        done: bar.warp.sync -1; st.global.u32 [%rd4], %r10;";
    let out = Run::new("", body).output();
    assert_eq!(out[..8], [0, 1, 7, 2, 5, 8, 16, 3]);
    assert_eq!(out[26], 111);
}

#[test]
fn a_block_reverses_through_shared_memory() {
    let body = "shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5;
        ld.global.u32 %r8, [%rd5]; st.shared.u32 [%r7], %r8; bar.sync 0;
        sub.s32 %r9, 252, %r5; add.s32 %r9, %r9, %r6; ld.shared.u32 %r10, [%r9];
        st.global.u32 [%rd4], %r10;";
    let declarations = ".shared .align 4 .b8 s[256];";
    let out = Run::new(declarations, body).shape(2, 64).output();
    assert_eq!((out[0], out[63], out[64]), (63, 0, 127));
    let racy = body.replace("bar.sync 0;", "");
    let run = Run::new(declarations, &racy).shape(2, 64);
    let fault = run.found_by(Check::SharedRaces, Kind::SharedRace);
    assert_eq!(fault.sites.len(), 2, "{fault}");
}

#[test]
fn lanes_of_a_warp_race_without_syncwarp() {
    let body = |sync: &str| {
        format!(
            "shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5; st.shared.u32 [%r7], %r1;
             {sync} xor.b32 %r8, %r5, 4; add.s32 %r8, %r8, %r6; ld.shared.u32 %r10, [%r8]; {STORE}"
        )
    };
    let declarations = ".shared .align 4 .b8 s[128];";
    let out = Run::new(declarations, &body("bar.warp.sync -1;")).output();
    assert_eq!(out[..4], [1, 0, 3, 2]);
    // A shuffle lets nobody see anything.
    let shuffle = "shfl.sync.idx.b32 %r9, %r1, 0, 31, -1;";
    Run::new(declarations, &body(shuffle)).found_by(Check::SharedRaces, Kind::SharedRace);
    Run::new(declarations, &body("")).found_by(Check::SharedRaces, Kind::SharedRace);
}

#[test]
fn lanes_of_one_instruction_may_name_different_members() {
    // Four groups of eight lanes, each with its own mask, add up their numbers.
    let body = "and.b32 %r5, %r1, 24; mov.u32 %r6, 255; shl.b32 %r6, %r6, %r5;
        redux.sync.add.s32 %r10, %r1, %r6; st.global.u32 [%rd4], %r10;";
    let out = Run::new("", body).output();
    assert_eq!((out[0], out[8], out[31]), (28, 92, 220));
}

#[test]
fn reads_out_of_bounds_and_unwritten() {
    let body = "ld.global.u32 %r10, [%rd5+16384]; st.global.u32 [%rd4], %r10;";
    let fault = Run::new("", body).found_by(Check::Bounds, Kind::OutOfBounds);
    assert!(
        fault
            .to_string()
            .contains("block (0, 0, 0), thread (0, 0, 0) reads 4 bytes")
    );
    let body = "ld.shared.u32 %r10, [s]; st.global.u32 [%rd4], %r10;";
    Run::new(".shared .align 4 .b8 s[256];", body)
        .found_by(Check::Uninitialised, Kind::Uninitialised);
    let body = "ld.global.u32 %r10, [%rd5+2]; st.global.u32 [%rd4], %r10;";
    Run::new("", body).found_by(Check::Alignment, Kind::Misaligned);
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    for instruction in [
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%r1, %r1},
         {%r1}, {%f1, %f2, %f3, %f4};",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r10}, [%r8];",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r8], {%r1};",
        "movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r1;",
    ] {
        let body = |before: &str| {
            format!(
                "shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5; mov.u32 %r10, 0;
                 st.shared.u32 [%r7], %r1; bar.warp.sync -1; and.b32 %r8, %r1, 7;
                 shl.b32 %r8, %r8, 4; add.s32 %r8, %r6, %r8; setp.lt.u32 %p1, %r1, 20;
                 {before} {instruction} end: {STORE}"
            )
        };
        let run = |before| Run::new(".shared .align 16 .b8 s[128];", &body(before));
        run("").output();
        for before in ["@%p1", "@!%p1 bra end;", "@!%p1 ret;"] {
            run(before).found_by(Check::Barriers, Kind::DivergentBarrier);
        }
        // Lanes that never were.
        let run = run("").shape(1, 20);
        run.found_by(Check::Barriers, Kind::DivergentBarrier);
    }
}

/// The last block to finish sums what the others wrote.
fn last_block(release: &str, acquire: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r1, 0; @%p1 bra wait;
         mul.wide.u32 %rd6, %r2, 4; add.s64 %rd7, %rd1, %rd6; add.s32 %r5, %r2, 10;
         st.global.u32 [%rd7+64], %r5; {release}
         mov.u64 %rd8, counter; atom.global.add.u32 %r6, [%rd8], 1; {acquire}
         setp.eq.u32 %p2, %r6, 3; selp.u32 %r7, 1, 0, %p2; st.shared.u32 [s], %r7;
         wait: bar.sync 0; ld.shared.u32 %r8, [s]; setp.eq.u32 %p3, %r8, 0; @%p3 ret;
         ld.global.v4.u32 {{%r11, %r12, %r13, %r14}}, [%rd1+64];
         add.s32 %r10, %r11, %r12; add.s32 %r10, %r10, %r13; add.s32 %r10, %r10, %r14;
         mul.wide.u32 %rd9, %r1, 4; add.s64 %rd4, %rd1, %rd9; @!%p1 st.global.u32 [%rd4], %r10;
         @!%p1 st.global.u32 [%rd8], 0;"
    )
}

#[test]
fn blocks_order_their_writes_by_fence_and_atomic() {
    let declarations = ".global .u32 counter = 0; .shared .u32 s;";
    let good = last_block("membar.gl;", "membar.gl;");
    assert_eq!(Run::new(declarations, &good).shape(4, 64).output()[0], 46);
    for (release, acquire) in [
        ("", "membar.gl;"),
        ("membar.cta;", "membar.gl;"),
        ("membar.gl;", ""),
        ("membar.gl;", "membar.cta;"),
    ] {
        let run = Run::new(declarations, &last_block(release, acquire)).shape(4, 64);
        run.found_by(Check::GlobalRaces, Kind::GlobalRace);
    }
}

#[test]
fn atomics_of_blocks_are_strong_in_the_scope_that_they_name() {
    let body = |scope: &str| {
        let body = "mov.u64 %rd8, counter; setp.eq.u32 %p1, %r1, 0;
            @%p1 atom.relaxed.SCOPE.global.add.u32 %r5, [%rd8], 1; mov.u32 %r10, 1;";
        format!("{} {STORE}", body.replace("SCOPE", scope))
    };
    let run = |scope, blocks| Run::new(".global .u32 counter = 0;", &body(scope)).shape(blocks, 32);
    run("gpu", 4).output();
    run("cta", 1).output();
    run("cta", 2).found_by(Check::GlobalRaces, Kind::GlobalRace);
}

/// Warps 0 to 3 each do something with shared memory `s`, and nothing but named barriers orders them.
fn warps(bodies: [&str; 4]) -> Run {
    let mut body = String::from(
        "shl.b32 %r5, %r1, 2; and.b32 %r5, %r5, 127; mov.u32 %r6, s; add.s32 %r7, %r6, %r5;
         shr.u32 %r8, %r1, 5; mov.u16 %h1, 3; mov.u32 %r10, 1;",
    );
    for (warp, own) in bodies.into_iter().enumerate() {
        body +=
            &format!("setp.ne.u32 %p1, %r8, {warp}; @%p1 bra after{warp}; {own} after{warp}:\n");
    }
    Run::new(".shared .align 4 .b8 s[128];", &format!("{body} {STORE}")).shape(1, 128)
}

#[test]
fn halves_of_a_word_have_their_own_accesses() {
    let (low, high) = ("st.shared.u16 [%r7], %h1;", "st.shared.u16 [%r7+2], %h1;");
    let read = "bar.sync 1, 64; ld.shared.u16 %h2, [%r7];";
    let arrive = |store: &str| format!("{store} bar.arrive 1, 64;");
    // The write of the other half comes last, and is the one that is waited for.
    let race = warps([low, &arrive(high), read, ""]);
    race.found_by(Check::SharedRaces, Kind::SharedRace);
    warps([high, &arrive(low), read, ""]).output();
    // A whole word meets both.
    let read = "bar.sync 1, 64; ld.shared.u32 %r9, [%r7];";
    let race = warps([low, &arrive(high), read, ""]);
    race.found_by(Check::SharedRaces, Kind::SharedRace);
    let both = "bar.sync 1, 96; ld.shared.u32 %r9, [%r7]; st.shared.u32 [%r7], %r1;";
    let arrive = |store: &str| format!("{store} bar.arrive 1, 96;");
    warps([&arrive(low), &arrive(high), both, ""]).output();
}

/// A word has a place for two of its readers: the third makes them a set.
#[test]
fn every_reader_of_a_word_is_waited_for() {
    let body = |arrive: [&str; 3]| {
        let first = "st.shared.u32 [%r7], %r1; bar.sync 2;".to_owned();
        let read = |arrive: &str| format!("bar.sync 2; ld.shared.u32 %r9, [%r7]; {arrive}");
        let [a, b, c] = arrive.map(read);
        let [a, b, c] = [&a, &b, &c].map(String::as_str);
        let writer = format!("{first} bar.sync 1, COUNT; st.shared.u32 [%r7], %r8;");
        let count = 32 * (1 + arrive.iter().filter(|text| !text.is_empty()).count());
        warps([a, b, c, &writer.replace("COUNT", &count.to_string())])
    };
    let all = |count: usize| format!("bar.arrive 1, {count};");
    let (three, two) = (all(128), all(96));
    body([&three, &three, &three]).output();
    for missing in 0..3 {
        let mut arrive = [two.as_str(); 3];
        arrive[missing] = "";
        body(arrive).found_by(Check::SharedRaces, Kind::SharedRace);
    }
}

#[test]
fn a_strong_read_races_with_a_plain_write() {
    let write = "st.shared.u32 [%r7], %r1;";
    let first = format!("{write} bar.arrive 1, 64;");
    let poll = "bar.sync 1, 64; ld.volatile.shared.u32 %r9, [%r7]; bar.arrive 2, 64;";
    let ordered = "bar.sync 2, 64; st.shared.u32 [%r7], %r8;";
    let unordered = "bar.sync 3, 64; st.shared.u32 [%r7], %r8;";
    let early = first.clone() + "bar.arrive 3, 64;";
    warps([&first, poll, ordered, ""]).output();
    let race = warps([
        &early,
        &poll.replace("bar.arrive 2, 64;", ""),
        unordered,
        "",
    ]);
    race.found_by(Check::SharedRaces, Kind::SharedRace);
    let strong = unordered.replace("st.", "st.volatile.");
    let poll = poll.replace("bar.arrive 2, 64;", "");
    let polled = warps([&early, &poll, &strong, ""]).result();
    assert!(polled.is_ok(), "{polled:?}");
}

#[test]
fn host_copies_beside_a_kernel_touch_their_own_bytes() {
    let mut memory = Memory::new(1 << 20);
    let body = "mov.u16 %h1, 7; st.global.u16 [%rd4], %h1;";
    let module = Module::load(&kernel("", body), &mut memory).unwrap();
    let out = memory.allocate(128).unwrap();
    let parameters: Vec<u8> = [out, out].iter().flat_map(|x| x.to_le_bytes()).collect();
    let launch = Launch {
        kernel: module.kernel("k").unwrap(),
        grid: [1, 1, 1],
        block: [32, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
        parameters: &parameters,
        cooperative: false,
        order: &Order {
            stream: 1,
            clock: vec![0, 1],
        },
    };
    run(&launch, &mut memory, &Options::default()).unwrap();
    let beside = |time| Order {
        stream: 2,
        clock: vec![0, 0, time],
    };
    memory.write(out + 2, &[1, 2], &beside(1)).unwrap();
    let fault = memory.write(out + 1, &[1, 2], &beside(2)).unwrap_err();
    assert_eq!(fault.kind, Kind::GlobalRace);
}

#[test]
fn numbers_of_threads_are_of_whole_warps() {
    let exchange = |barrier: &str| {
        format!(
            "shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5; st.shared.u32 [%r7], %r1;
             setp.lt.u32 %p1, %r1, 32; {barrier} sub.s32 %r8, %r3, 1; sub.s32 %r8, %r8, %r1;
             shl.b32 %r8, %r8, 2; add.s32 %r8, %r6, %r8; ld.shared.u32 %r10, [%r8]; {STORE}"
        )
    };
    let run = |barrier, threads| {
        Run::new(".shared .align 4 .b8 s[1024];", &exchange(barrier)).shape(1, threads)
    };
    assert_eq!(run("bar.sync 1, 64;", 40).output()[39], 0);
    // The number of the whole block, or none: one barrier.
    let mixed = "@%p1 bra all; bar.sync 0, 256; bra on; all: bar.sync 0; on:";
    assert_eq!(run(mixed, 256).output()[255], 0);
    let wrong = mixed.replace("256", "128");
    run(&wrong, 256).found_by(Check::Barriers, Kind::DivergentBarrier);
}

#[test]
fn the_barrier_of_a_cluster_waits_for_nobody_who_has_ended() {
    let body = "setp.lt.u32 %p1, %r1, 32; @!%p1 ret;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; mov.u32 %r10, 1;
        st.global.u32 [%rd4], %r10;";
    let mut run = Run::new("", body).shape(2, 64);
    run.cluster = 2;
    let out = run.output();
    assert_eq!((out[0], out[64], out[32]), (1, 1, 0));
    // Nor does it count those that have arrived and ended: the others still wait for each other.
    let body = "setp.lt.u32 %p1, %r1, 32; setp.eq.u32 %p2, %r2, 0; @%p2 bra first;
        barrier.cluster.arrive.aligned; ret;
        first: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; mov.u32 %r10, 1;
        st.global.u32 [%rd4], %r10;";
    let mut run = Run::new("", body).shape(2, 64);
    run.cluster = 2;
    assert_eq!(run.output()[63], 1);
}

#[test]
fn documented_corners_of_narrow_floats() {
    for (body, expected) in [
        // True is all ones, of the width of the result.
        (
            "mov.b16 %h1, 0x3C00; set.eq.u32.f16 %r10, %h1, %h1;",
            u32::MAX,
        ),
        // 2⁻²⁰ is subnormal in f16 alone, and `.ftz` is about f32.
        (
            "mov.f32 %f1, 0f35800000; cvt.rn.ftz.f16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;",
            0x10,
        ),
        // 2⁻¹³⁰ is subnormal in bf16.
        (
            "mov.b16 %h1, 0xC302; ex2.approx.ftz.bf16 %h2, %h1; cvt.u32.u16 %r10, %h2;",
            0,
        ),
        // Sums of subnormals: flushed in global memory, kept in shared memory.
        (
            "mov.f32 %f1, 0f00000003; atom.global.add.f32 %f2, [%rd4], %f1;
             ld.global.u32 %r10, [%rd4];",
            0,
        ),
        (
            "mov.f32 %f1, 0f00000003; shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5;
             mov.u32 %r8, 0; st.shared.u32 [%r7], %r8; atom.shared.add.f32 %f2, [%r7], %f1;
             ld.shared.u32 %r10, [%r7];",
            3,
        ),
    ] {
        let run = Run::new(".shared .align 4 .b8 s[128];", &format!("{body} {STORE}"));
        assert_eq!(run.output()[0], expected, "{body}");
    }
}

#[test]
fn divergent_barriers_are_found() {
    let body = "setp.lt.u32 %p1, %r1, 16; @!%p1 bra other; bar.sync 0; bra done;
        other: bar.sync 0; done:";
    Run::new("", body)
        .shape(1, 64)
        .found_by(Check::Barriers, Kind::DivergentBarrier);
    // A barrier that waits for a warp that never comes.
    let body = "setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1, 64; bar.sync 0;";
    let run = Run::new("", body).shape(1, 64);
    run.found_by(Check::Barriers, Kind::DivergentBarrier);
    // Threads that have exited are not waited for.
    let body = "setp.ge.u32 %p1, %r1, 40; @%p1 ret; bar.sync 0; mov.u32 %r10, 1;
        st.global.u32 [%rd4], %r10;";
    assert_eq!(Run::new("", body).shape(1, 64).output()[39], 1);
}

#[test]
fn named_barriers_order_producers_and_consumers() {
    let body = |arrive: &str, sync: &str| {
        format!(
            "shl.b32 %r5, %r1, 2; and.b32 %r5, %r5, 127; mov.u32 %r6, s; add.s32 %r7, %r6, %r5;
             setp.ge.u32 %p1, %r1, 32; @%p1 bra consumer;
             st.shared.u32 [%r7], %r1; {arrive} ret;
             consumer: {sync} xor.b32 %r8, %r5, 4; add.s32 %r8, %r8, %r6;
             ld.shared.u32 %r10, [%r8]; {STORE}"
        )
    };
    let declarations = ".shared .align 4 .b8 s[128];";
    let good = body("bar.arrive 1, 64;", "bar.sync 1, 64;");
    assert_eq!(
        Run::new(declarations, &good).shape(1, 64).output()[32..34],
        [1, 0]
    );
    let bad = body("", "bar.warp.sync -1;");
    Run::new(declarations, &bad)
        .shape(1, 64)
        .found_by(Check::SharedRaces, Kind::SharedRace);
}

#[test]
fn local_memory_is_checked() {
    let body = |at: u32| {
        format!(
            ".local .align 4 .b8 l[64]; mov.u32 %r5, l; st.local.u32 [%r5+8], %r1;
             ld.local.u32 %r10, [%r5+{at}]; {STORE}"
        )
    };
    assert_eq!(Run::new("", &body(8)).output()[31], 31);
    Run::new("", &body(12)).found_by(Check::Uninitialised, Kind::Uninitialised);
    Run::new("", &body(64)).found_by(Check::Bounds, Kind::OutOfBounds);
}

#[test]
fn hostile_sizes_are_errors() {
    for body in [
        ".local .align 4 .b8 l[16000000];",
        ".local .align 4 .b8 l[18446744073709551615][4];",
        ".reg .b32 %x<1000000>;",
        ".shared .align 4 .b8 s[4294967295];",
    ] {
        let fault = Run::new("", body).result().unwrap_err();
        assert!(
            matches!(fault.kind, Kind::Parse | Kind::Unsupported),
            "{body}: {fault}"
        );
    }
    // Each function calls the one before twice: two to the thirtieth calls.
    let mut functions = String::from(".func f0() { ret; }\n");
    for i in 1..30 {
        let before = i - 1;
        functions += &format!(".func f{i}() {{ call f{before}; call f{before}; ret; }}\n");
    }
    let fault = Run::new(&functions, "call f29;").result().unwrap_err();
    assert_eq!(fault.kind, Kind::Unsupported, "{fault}");
    let recursive = ".func f() { call f; ret; }\n";
    assert_eq!(
        Run::new(recursive, "call f;").result().unwrap_err().kind,
        Kind::Unsupported
    );
}

#[test]
fn a_hang_is_an_error() {
    let mut run = Run::new("", "again: bra again;");
    run.options.step_limit = 100_000;
    assert_eq!(run.result().unwrap_err().kind, Kind::StepLimit);
}

#[test]
fn asynchronous_copies() {
    let body = |wait: &str| {
        format!(
            "shl.b32 %r5, %r1, 2; mov.u32 %r6, s; add.s32 %r7, %r6, %r5;
             cp.async.ca.shared.global [%r7], [%rd5], 4; cp.async.commit_group; {wait}
             bar.sync 0; xor.b32 %r8, %r5, 124; add.s32 %r8, %r8, %r6;
             ld.shared.u32 %r10, [%r8]; {STORE}"
        )
    };
    let declarations = ".shared .align 4 .b8 s[128];";
    let out = Run::new(declarations, &body("cp.async.wait_group 0;")).output();
    assert_eq!(out[..2], [31, 30]);
    Run::new(declarations, &body("")).found_by(Check::AsyncCopies, Kind::AsyncCopy);
}

#[test]
fn asynchronous_copies_of_part_of_their_size() {
    let body = |from: u32, read: u32| {
        format!(
            "setp.eq.u32 %p1, %r1, 1; mov.u32 %r6, s;
             @%p1 cp.async.ca.shared.global [%r6], [%rd2+{from}], 16, {read};
             cp.async.wait_all; bar.warp.sync -1; ld.shared.u32 %r10, [%r6+8]; {STORE}"
        )
    };
    let run = |from, read| Run::new(".shared .align 16 .b8 s[128];", &body(from, read));
    assert_eq!(run(16, 12).output()[0], 6);
    assert_eq!(run(16, 8).output()[0], 0);
    // Aligned by the size of the copy, not by what is read of it.
    run(24, 8).found_by(Check::Alignment, Kind::Misaligned);
    run(16, 20).found_by(Check::Bounds, Kind::OutOfBounds);
}

#[test]
fn device_functions_are_inlined() {
    let declarations = ".func (.param .b32 result) twice(.param .b32 x, .param .b32 y)\n{\n\
        .reg .b32 %r<4>;\nld.param.u32 %r1, [x]; ld.param.u32 %r2, [y];\n\
        mad.lo.s32 %r3, %r1, 2, %r2; st.param.b32 [result], %r3; ret;\n}\n";
    let body = "{ .param .b32 a; st.param.b32 [a], %r4; .param .b32 b; st.param.b32 [b], 5;
        .param .b32 c; call.uni (c), twice, (a, b); ld.param.b32 %r10, [c]; } st.global.u32 [%rd4], %r10;";
    assert_eq!(Run::new(declarations, body).output()[..3], [5, 7, 9]);
}

#[test]
fn hostile_ptx_is_an_error() {
    for body in [
        "frobnicate.u32 %r1, %r2;",
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %rd2, %r3;",
        "bra nowhere;",
        "ld.global.u32 %r1, [%p1];",
        "add.wonderful.u32 %r1, %r2, %r3;",
        "mov.u32 %r1, unknown;",
    ] {
        let fault = Run::new("", body).result().unwrap_err();
        assert!(
            matches!(fault.kind, Kind::Parse | Kind::Unsupported),
            "{body}: {fault}"
        );
        assert!(fault.to_string().contains("PTX line 14"), "{body}: {fault}");
    }
}
