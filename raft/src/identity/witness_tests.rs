//! What convicts a disk of being an older copy, and what does not.

use super::{Begun, FILE, Held, Known, Met, Witness};
use crate::identity::lives::{Life, Lives};

fn life(number: u64) -> Life {
    Life { number, name: 100 + number }
}

/// The start of a sound disk in this life, by the process `boot`.
fn begun(number: u64, boot: u64, last: (u64, u64), voted: u64) -> Begun {
    let names = (1..=number).map(|number| life(number).name).collect();
    let lives = Lives { number, names, is_met: true };
    Begun { lives, boot, with: Held { last: Some(last), voted } }
}

fn known(number: u64, boot: u64, last: (u64, u64), voted: u64) -> Known {
    let held = Held { last: Some(last), voted };
    Known { disk_id: "disk".into(), life: life(number), boot, held }
}

fn witness() -> (tempfile::TempDir, Witness) {
    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::open(dir.path()).unwrap();
    (dir, witness)
}

#[test]
fn a_life_must_follow_the_one_that_was_met() {
    let (_dir, witness) = witness();
    let judge = |begun: &Begun, met: Life| {
        witness.objection(3, "disk", begun, Some(&Met { disk_id: "disk".into(), life: met }))
    };
    let present = begun(7, 1, (2, 9), 2);
    assert_eq!(judge(&present, life(7)), None);
    assert_eq!(judge(&present, life(3)), None);
    assert!(judge(&present, life(8)).unwrap().contains("in life 7, and was met in life 8"));
    let forked = judge(&present, Life { number: 6, name: 5 }).unwrap();
    assert!(forked.contains("in another life 6"), "{forked}");
    // Of another disk, or so far back that no name is kept: others judge that.
    let other = Met { disk_id: "other".into(), life: life(8) };
    assert_eq!(witness.objection(3, "disk", &present, Some(&other)), None);
    let mut short = present.clone();
    short.lives.names.drain(..5);
    assert_eq!(judge(&short, Life { number: 2, name: 5 }), None);
    assert_eq!(witness.objection(3, "disk", &Begun::default(), None), None, "of an earlier version");
}

#[test]
fn a_later_start_must_hold_what_an_earlier_one_had_promised() {
    let (_dir, witness) = witness();
    witness.hear(3, &known(4, 1, (2, 100), 2));
    let judge = |begun: Begun| witness.objection(3, "disk", &begun, None);
    assert_eq!(judge(begun(5, 2, (2, 100), 2)), None);
    assert_eq!(judge(begun(5, 2, (3, 180), 7)), None);
    assert!(
        judge(begun(5, 2, (2, 99), 2)).unwrap().contains("ends at 99 (term 2), and it had acknowledged 100")
    );
    assert!(judge(begun(5, 2, (1, 130), 2)).unwrap().contains("term 1"), "entries that were never committed");
    assert!(judge(begun(5, 2, (2, 100), 1)).unwrap().contains("voted in term 2"));
    assert_eq!(judge(begun(4, 1, (2, 50), 1)), None, "the same process has got further since its start");
    assert!(
        judge(begun(4, 2, (2, 50), 1)).is_some(),
        "another process in a life that nobody was to have met"
    );
    assert_eq!(witness.objection(3, "new disk", &begun(1, 2, (1, 1), 1), None), None);
    // What becomes known later convicts a disk that was welcome before.
    let present = begun(6, 3, (3, 200), 3);
    assert_eq!(judge(present.clone()), None);
    witness.hear(3, &known(5, 2, (3, 250), 3));
    assert!(judge(present).unwrap().contains("acknowledged 250"));
}

#[test]
fn marks_only_rise_and_the_first_of_two_lives_with_one_number_is_right() {
    let (_dir, witness) = witness();
    witness.hear(3, &known(4, 1, (2, 100), 5));
    witness.hear(3, &known(4, 1, (3, 90), 4));
    assert_eq!(witness.newest(3), Some(known(4, 1, (2, 100), 5)));
    witness.hear(3, &Known { life: Life { number: 4, name: 9 }, ..known(4, 8, (9, 900), 9) });
    assert_eq!(witness.newest(3), Some(known(4, 1, (2, 100), 5)));
    for number in 5..9 {
        witness.hear(3, &known(number, number, (3, 100 * number), 5));
    }
    let kept: Vec<u64> = witness.all().iter().map(|(_, known)| known.life.number).collect();
    assert_eq!(kept, [6, 7, 8]);
}

#[test]
fn it_is_remembered_over_a_restart_and_a_torn_file_is_forgotten() {
    let (dir, witness) = witness();
    witness.hear(2, &known(1, 1, (1, 1), 1));
    witness.hear(3, &known(4, 1, (2, 100), 5));
    witness.save().unwrap();
    let again = Witness::open(dir.path()).unwrap();
    assert_eq!((again.all(), again.newest(3)), (witness.all(), Some(known(4, 1, (2, 100), 5))));
    let file = dir.path().join("witness.json");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(Witness::open(dir.path()).unwrap().all(), []);
}

/// What the system does not let a node read is not dropped: it would be overwritten.
#[test]
fn marks_that_cannot_be_read_are_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), b"no marks").unwrap();
    assert_eq!(Witness::open(dir.path()).unwrap().all(), []);
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    std::fs::create_dir(dir.path().join(FILE)).unwrap();
    assert!(Witness::open(dir.path()).is_err());
}
