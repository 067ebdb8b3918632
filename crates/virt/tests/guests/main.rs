//! Guests of generated disks, as libvirt has them and as we do: live XML, the words of errors, what QEMU is given, and whose
//! the files are while the guest runs.
#![cfg(test)]

mod compare;

use catena_testkit::domains::Forest;
use catena_testkit::libvirt::{Daemon, Guest};
use catena_virt::access::Ids;
use compare::{Compared, Owners};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// So many are started at a time: each on images of its own, for one would take those of another.
const AT_ONCE: u64 = 3;

/// How many guests are started; more where `CATENA_DOMAINS` says so.
fn guests() -> u64 {
    std::env::var("CATENA_DOMAINS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(170)
}

/// What was compared, and what differs.
#[derive(Debug, Default)]
struct Tally {
    /// The guests, by how they were compared.
    guests: BTreeMap<Compared, usize>,
    /// Their chains.
    chains: BTreeMap<Compared, usize>,
    differences: Vec<String>,
}

impl Tally {
    fn count(&mut self, number: u64, guest: &Guest, compared: Result<Compared, String>) {
        match compared {
            Ok(how) => {
                *self.guests.entry(how).or_default() += 1;
                // Of a guest that is refused, one disk was looked at.
                *self.chains.entry(how).or_default() += match how {
                    Compared::Running | Compared::GivenAndRefused => guest.devices.matches("<disk ").count(),
                    _ => 1,
                };
            }
            Err(difference) => {
                self.differences.push(format!(
                    "{number}: {}{}\n{difference}",
                    guest.devices, guest.domain
                ));
            }
        }
    }

    fn add(&mut self, other: Self) {
        for (sum, counts) in [(&mut self.guests, other.guests), (&mut self.chains, other.chains)] {
            for (how, count) in counts {
                *sum.entry(how).or_default() += count;
            }
        }
        self.differences.extend(other.differences);
    }
}

fn owners(forest: &Forest) -> Owners {
    let files = forest.files().into_iter().map(|path| {
        let metadata = path.metadata().unwrap();
        let ids = Ids {
            uid: metadata.uid(),
            gid: metadata.gid(),
        };
        (path, ids)
    });
    files.collect()
}

/// Starts some of the guests, and compares them.
fn differential(daemon: &Daemon, worker: u64) -> Tally {
    let forest = Forest::grown(worker);
    forest.introduce(daemon);
    let mut tally = Tally::default();
    for number in (worker..guests()).step_by(AT_ONCE as usize) {
        let guest = forest.guest(number, 4..11);
        // Where libvirt leaves an owner, QEMU can open the file now and then.
        forest.belongs_to_root(number % 4 == 0);
        let before = owners(&forest);
        let (started, during) = daemon.run(&guest, || owners(&forest));
        let compared = compare::compare(daemon, &guest, &started, &before, during.as_ref());
        tally.count(number, &guest, compared);
    }
    tally
}

#[test]
fn guests_that_are_started_are_as_with_libvirt() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                scope.spawn({
                    let daemon = &daemon;
                    move || differential(daemon, worker)
                })
            })
            .collect();
        for worker in workers {
            tally.add(worker.join().unwrap());
        }
    });
    let Tally {
        guests,
        chains,
        differences,
    } = tally;
    assert!(
        differences.is_empty(),
        "{} differ:\n{}\n{guests:?} {chains:?}",
        differences.len(),
        differences.join("\n\n")
    );
    assert!(chains[&Compared::Running] >= 300, "{chains:?}");
    assert!(chains[&Compared::Refused] >= 20, "{chains:?}");
}
