//! Every operation on forests, cut off everywhere: killed at each system call that changes something, each of those failing for want
//! of space or a broken medium, and the power gone at any instant. Every image that is kept shows its guest what it did, and what was begun is
//! finished or taken back, with nothing left.
//!
//! `CATENA_CUTS=N` asks for faults at every call, and for N power cuts of each operation.

mod cases;
mod lab;

use catena_testkit::Dice;
use catena_testkit::cuts::{Fault, Order};
use lab::{Case, Lab};

/// Calls of an operation that each fault strikes.
const STRUCK: [(Fault, usize); 3] = [(Fault::Killed, 7), (Fault::NoSpace, 4), (Fault::Broken, 3)];
/// Power cuts of each operation.
const CUTS: usize = 24;

/// The power cuts that are asked for instead, of each operation.
fn asked() -> Option<usize> {
    let text = std::env::var("CATENA_CUTS").ok()?;
    Some(text.parse().expect("CATENA_CUTS is a number"))
}

fn survives(case: &Case) {
    let mut lab = Lab::new(case);
    is_struck_at_its_calls(&mut lab);
    loses_its_power(&mut lab);
    lab.end();
}

fn is_struck_at_its_calls(lab: &mut Lab<'_>) {
    let points = lab.points();
    let mut dice = Dice::new(points.len() as u64);
    let all = points.len();
    for (fault, few) in STRUCK {
        // The turns of threads are not the same in each run, so that now and then a call is not made.
        let (struck, least) = match asked() {
            Some(_) => {
                let struck = points.iter().filter(|point| lab.strike(fault, point)).count();
                (struck, all * 3 / 4)
            }
            None => {
                let drawn = (0..8 * few).map(|_| dice.one_of(&points));
                let struck = drawn.filter(|point| lab.strike(fault, point)).take(few).count();
                (struck, few)
            }
        };
        eprintln!("{}: {fault:?} {struck} times at {all} calls", lab.name());
        assert!(struck >= least, "{}: {fault:?} {struck} times", lab.name());
    }
}

fn loses_its_power(lab: &mut Lab<'_>) {
    let how_many = asked().unwrap_or(CUTS);
    let mut made = 0;
    for (order, share) in [
        (Order::Journal, how_many.div_ceil(2)),
        (Order::Folders, how_many / 2),
    ] {
        made += lab.cut_power(order, share);
    }
    eprintln!("{}: cut off from power {made} times", lab.name());
    // A short operation has no more.
    assert!(made >= how_many.min(8), "{}: {made} cuts", lab.name());
}
