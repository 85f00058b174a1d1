use super::super::fake::Fake;
use super::*;

const SHARED: Location = Location::shared(0, 64);
const GLOBAL: Location = Location::global(4096);
const BARRIER: Location = Location::shared(0, 8);

fn piece() -> Piece {
    Piece::plain(GLOBAL, SHARED, 4)
}

fn engine(policy: Copies) -> Engine<&'static str> {
    Engine::new(policy, 1, true)
}

#[test]
fn early_copies_land_at_issue_and_stay_owned_until_the_wait() {
    let (mut engine, mut fake) = (engine(Copies::Early), Fake::default());
    fake.put(GLOBAL, &[1; 4]);
    engine.copy(3, piece(), "first", &mut fake).unwrap();
    engine.commit(3);
    fake.put(GLOBAL, &[2; 4]);
    assert_eq!(fake.get(SHARED, 4), [1; 4]);
    assert_eq!(engine.owner(0, 67, 1, false), Some((&"first", Use::Target)));
    engine.wait(9, 0, &mut fake).unwrap();
    assert!(!engine.is_idle(), "another thread's wait is not enough");
    engine.wait(3, 0, &mut fake).unwrap();
    assert_eq!(fake.get(SHARED, 4), [1; 4]);
    assert_eq!(engine.owner(0, 64, 4, true), None);
    assert!(engine.is_idle());
}

#[test]
fn late_copies_land_at_the_wait_that_covers_them() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    fake.put(GLOBAL, &[1; 32]);
    for stage in 0..3 {
        let to = SHARED.plus(16 * stage);
        engine
            .copy(0, Piece::plain(GLOBAL, to, 16), "stage", &mut fake)
            .unwrap();
        engine.commit(0);
    }
    engine.wait(0, 2, &mut fake).unwrap();
    assert_eq!(fake.get(SHARED, 32), [[1; 16], [0; 16]].concat());
    assert_eq!(engine.owner(0, 79, 1, true), None);
    assert_eq!(engine.owner(0, 80, 1, false), Some((&"stage", Use::Target)));
    fake.put(GLOBAL, &[2; 16]);
    engine.wait_all(0, &mut fake).unwrap();
    assert_eq!(fake.get(SHARED.plus(16), 32), [2; 32]);
    assert!(engine.is_idle());
}

#[test]
fn sources_smaller_than_the_copy_are_zero_filled() {
    let (mut engine, mut fake) = (engine(Copies::Early), Fake::default());
    fake.put(GLOBAL, &[1; 16]);
    fake.put(SHARED, &[9; 32]);
    engine
        .copy(0, Piece::zero_filled(GLOBAL, SHARED, 16, 6), "a", &mut fake)
        .unwrap();
    engine
        .copy(
            0,
            Piece::zero_filled(GLOBAL, SHARED.plus(16), 8, 0),
            "b",
            &mut fake,
        )
        .unwrap();
    let expected = [vec![1; 6], vec![0; 18], vec![9; 8]].concat();
    assert_eq!(fake.get(SHARED, 32), expected);
    assert_eq!(fake.read, 6, "bytes beyond the source size are not read");
}

#[test]
fn two_copies_in_flight_to_the_same_bytes_conflict() {
    for policy in [Copies::Early, Copies::Late, Copies::Random] {
        let (mut engine, mut fake) = (engine(policy), Fake::default());
        engine.copy(0, piece(), "first", &mut fake).unwrap();
        let fault = engine.copy(1, piece(), "second", &mut fake).unwrap_err();
        assert!(
            fault.what.contains("first") && fault.what.contains("second"),
            "{fault}"
        );
    }
    let (mut engine, mut fake) = (Engine::new(Copies::Late, 1, false), Fake::default());
    engine.copy(0, piece(), "first", &mut fake).unwrap();
    engine.copy(1, piece(), "second", &mut fake).unwrap();
    assert_eq!(
        engine.owner(0, 64, 4, false),
        None,
        "unchecked engines watch nothing"
    );
}

#[test]
fn arrivals_wait_for_the_copies_before_them() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    fake.put(GLOBAL, &[1; 8]);
    engine.copy(5, piece(), "before", &mut fake).unwrap();
    engine.commit(5);
    engine
        .arrive_when_done(5, BARRIER, false, "arrive", &mut fake)
        .unwrap();
    let after = Piece::plain(GLOBAL, SHARED.plus(4), 4);
    engine.copy(5, after, "after", &mut fake).unwrap();
    engine.commit(5);
    assert_eq!(
        (&fake.expected[..], &fake.arrived[..]),
        (&[BARRIER][..], &[][..])
    );
    assert!(!engine.poll(Location::shared(1, 8), &mut fake).unwrap());
    assert!(fake.arrived.is_empty());
    assert!(engine.poll(BARRIER, &mut fake).unwrap());
    assert_eq!(fake.arrived, [BARRIER]);
    assert_eq!(fake.get(SHARED, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
    // Both groups still count: the older is done, so waiting for all but one changes nothing.
    engine.wait(5, 1, &mut fake).unwrap();
    assert_eq!(fake.get(SHARED.plus(4), 4), [0; 4]);
    engine.wait(5, 0, &mut fake).unwrap();
    assert_eq!(fake.get(SHARED.plus(4), 4), [1; 4]);
}

#[test]
fn early_arrivals_without_increment_come_at_once() {
    let (mut engine, mut fake) = (engine(Copies::Early), Fake::default());
    engine.copy(5, piece(), "before", &mut fake).unwrap();
    engine
        .arrive_when_done(5, BARRIER, true, "arrive", &mut fake)
        .unwrap();
    assert_eq!(
        (fake.expected.len(), &fake.arrived[..]),
        (0, &[BARRIER][..])
    );
    assert_eq!(
        engine.owner(0, 64, 4, false),
        None,
        "ordered by the mbarrier from here on"
    );
}

#[test]
fn bulk_loads_complete_their_bytes_when_somebody_looks() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    fake.put(GLOBAL, &[7; 600]);
    let pieces: Vec<Piece> = Piece::split(GLOBAL, SHARED, 600).collect();
    assert_eq!(pieces.len(), 3);
    engine
        .load(pieces, Vec::new(), BARRIER, "load", &mut fake)
        .unwrap();
    assert_eq!(engine.owner(0, 663, 1, false), Some((&"load", Use::Target)));
    assert!(fake.completed.is_empty());
    assert_eq!(engine.left_by(0), Some((&"load", Use::Target)));
    assert!(engine.poll(BARRIER, &mut fake).unwrap());
    assert_eq!(fake.completed[&BARRIER], 600);
    assert_eq!(fake.get(SHARED, 600), [7; 600]);
    assert!(engine.is_idle());
    assert!(!engine.poll(BARRIER, &mut fake).unwrap());
}

#[test]
fn multicast_reads_once_and_completes_in_every_block() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    fake.put(GLOBAL, &[7; 16]);
    let pieces = vec![Piece::plain(GLOBAL, SHARED, 16)];
    engine
        .load(pieces, vec![1, 3], BARRIER, "load", &mut fake)
        .unwrap();
    assert_eq!(engine.owner(0, 64, 4, false), None);
    assert!(engine.owner(3, 64, 4, false).is_some());
    assert!(engine.poll_all(&mut fake).unwrap());
    for rank in [1, 3] {
        assert_eq!(fake.get(SHARED.in_block(rank), 16), [7; 16]);
        assert_eq!(fake.completed[&BARRIER.in_block(rank)], 16);
    }
    assert_eq!((fake.read, fake.completed.len()), (16, 2));
}

#[test]
fn stores_own_their_source_until_it_is_read() {
    for policy in [Copies::Early, Copies::Late] {
        let (mut engine, mut fake) = (engine(policy), Fake::default());
        fake.put(SHARED, &[5; 16]);
        let store = || vec![Piece::plain(SHARED, GLOBAL, 16)];
        engine.store(0, store(), "store", &mut fake).unwrap();
        engine.commit_stores(0);
        assert_eq!(engine.owner(0, 64, 4, true), Some((&"store", Use::Source)));
        assert_eq!(engine.owner(0, 64, 4, false), None);
        engine.wait_stores_read(0, 0, &mut fake).unwrap();
        assert_eq!(engine.owner(0, 64, 4, true), None);
        assert_eq!(engine.left_by(0), None);
        assert!(!engine.is_idle());
        fake.put(SHARED, &[6; 16]);
        engine.wait_stores(0, 0, &mut fake).unwrap();
        assert_eq!(fake.get(GLOBAL, 16), [5; 16]);
        assert!(engine.is_idle());
    }
}

#[test]
fn a_load_into_the_source_of_a_store_in_flight_conflicts() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    engine
        .store(0, vec![Piece::plain(SHARED, GLOBAL, 4)], "store", &mut fake)
        .unwrap();
    let load = vec![piece()];
    assert!(
        engine
            .load(load, Vec::new(), BARRIER, "load", &mut fake)
            .is_err()
    );
}

#[test]
fn random_landing_is_reproducible_and_takes_both_turns() {
    let landed = |seed| -> Vec<bool> {
        let (mut engine, mut fake) = (Engine::new(Copies::Random, seed, true), Fake::default());
        fake.put(GLOBAL, &[1; 4]);
        let landed = (0..64).map(|i| {
            let to = SHARED.plus(4 * i);
            engine
                .copy(0, Piece::plain(GLOBAL, to, 4), "copy", &mut fake)
                .unwrap();
            fake.get(to, 1) == [1]
        });
        landed.collect()
    };
    assert_eq!(landed(1), landed(1));
    assert_ne!(landed(1), landed(2));
    let early = landed(1).iter().filter(|landed| **landed).count();
    assert!((16..48).contains(&early), "{early} of 64");
}

#[test]
fn nothing_is_lost_at_the_end() {
    let (mut engine, mut fake) = (engine(Copies::Late), Fake::default());
    fake.put(SHARED, &[5; 16]);
    engine
        .store(
            0,
            vec![Piece::plain(SHARED, GLOBAL, 16)],
            "store",
            &mut fake,
        )
        .unwrap();
    engine.finish(&mut fake).unwrap();
    assert_eq!(fake.get(GLOBAL, 16), [5; 16]);
    assert!(engine.is_idle());
}
