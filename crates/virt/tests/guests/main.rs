//! Guests of generated disks, as libvirt has them and as we do: live XML, the words of errors, what QEMU is given, and whose
//! the files are while the guest runs.
#![cfg(test)]

mod compare;
mod differences;
mod given;

use catena_testkit::domains::{Forest, Layer};
use catena_testkit::libvirt::{Daemon, Guest};
use catena_virt::access::Ids;
use compare::{Compared, Owners, Rows};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// So many are started at a time: each on images of its own, for one would take those of another.
const AT_ONCE: u64 = 3;

/// How many guests are started, beside one for each image that is odd; more where `CATENA_DOMAINS` says so.
fn guests() -> u64 {
    std::env::var("CATENA_DOMAINS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(120)
}

/// What was compared, and what differs.
#[derive(Debug, Default)]
struct Tally {
    /// The guests, by how they were compared.
    guests: BTreeMap<Compared, usize>,
    /// Their chains.
    chains: BTreeMap<Compared, usize>,
    rows: Rows,
    differences: Vec<String>,
}

impl Tally {
    fn count(&mut self, name: &str, guest: &Guest, compared: Result<Compared, String>) {
        match compared {
            Ok(how) => {
                *self.guests.entry(how).or_default() += 1;
                // Of a guest that is refused, one disk was looked at.
                *self.chains.entry(how).or_default() += match how {
                    Compared::Running | Compared::Translated | Compared::GivenAndRefused => {
                        guest.devices.matches("<disk ").count()
                    }
                    _ => 1,
                };
            }
            Err(difference) => {
                self.differences
                    .push(format!("{name}: {}{}\n{difference}", guest.devices, guest.domain));
            }
        }
    }

    fn add(&mut self, other: Self) {
        for (sum, counts) in [(&mut self.guests, other.guests), (&mut self.chains, other.chains)] {
            for (how, count) in counts {
                *sum.entry(how).or_default() += count;
            }
        }
        self.rows.extend(other.rows);
        self.differences.extend(other.differences);
    }

    /// That nothing differs but what is listed.
    fn judge(&self) {
        let Self {
            guests,
            chains,
            rows,
            differences,
        } = self;
        assert!(
            differences.is_empty(),
            "{} differ:\n{}\n{guests:?} {chains:?} {rows:?}",
            differences.len(),
            differences.join("\n\n")
        );
        println!("guests {guests:?}, chains {chains:?}, differences {rows:#?}");
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

/// Starts a guest and compares it.
fn start(daemon: &Daemon, forest: &Forest, name: &str, guest: &Guest, tally: &mut Tally) {
    let before = owners(forest);
    let (started, during) = daemon.run(guest, || owners(forest));
    let owners = (&before, during.as_ref());
    let compared = compare::started(daemon, guest, &started, owners, &mut tally.rows);
    tally.count(name, guest, compared);
}

/// Starts some of the guests, and compares them.
fn differential(daemon: &Daemon, worker: u64) -> Tally {
    let forest = Forest::grown(worker);
    forest.introduce(daemon);
    let mut tally = Tally::default();
    for (number, guest) in forest.oddities().iter().enumerate() {
        if number % AT_ONCE as usize == worker as usize {
            forest.belongs_to_root(false);
            start(daemon, &forest, &format!("odd {number}"), guest, &mut tally);
        }
    }
    for number in (worker..guests()).step_by(AT_ONCE as usize) {
        let guest = forest.guest(number, 4..11);
        // Where libvirt leaves an owner, QEMU can open the file now and then.
        forest.belongs_to_root(number % 4 == 0);
        start(daemon, &forest, &number.to_string(), &guest, &mut tally);
    }
    tally
}

#[test]
fn guests_that_are_started_are_as_with_libvirt() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let daemon = &daemon;
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| scope.spawn(move || differential(daemon, worker)))
            .collect();
        for worker in workers {
            tally.add(worker.join().unwrap());
        }
    });
    tally.judge();
    let shown = differences::SAID.iter().map(|known| known.row);
    let shown = shown.chain(differences::SHOWN.iter().copied());
    let gone: Vec<_> = shown
        .filter(|row| !tally.rows.contains(row) && !row.starts_with("more than "))
        .collect();
    assert_eq!(gone, [""; 0], "differences that no guest shows any more");
    assert!(tally.chains[&Compared::Running] >= 300, "{:?}", tally.chains);
    assert!(tally.chains[&Compared::Refused] >= 50, "{:?}", tally.chains);
}

#[test]
fn guests_whose_xml_leaves_nothing_to_be_looked_for_get_the_nodes_that_libvirt_gives_them() {
    const BATCH: usize = 50;
    let forest = Forest::new();
    let daemon = Daemon::start_unprivileged().unwrap();
    forest.introduce(&daemon);
    let guests: Vec<_> = (0..3 * guests()).map(|number| forest.closed(number)).collect();
    let mut tally = Tally::default();
    for (batch, guests) in guests.chunks(BATCH).enumerate() {
        for (number, (guest, theirs)) in guests.iter().zip(daemon.translate(guests)).enumerate() {
            let name = (batch * BATCH + number).to_string();
            let compared = compare::translated(&daemon, guest, &theirs, &mut tally.rows);
            tally.count(&name, guest, compared);
        }
    }
    tally.judge();
    assert!(tally.chains[&Compared::Translated] >= 600, "{:?}", tally.chains);
    assert!(tally.chains[&Compared::Refused] >= 10, "{:?}", tally.chains);
}

/// A disk over a chain of which XML gives so many layers.
fn disk(chain: &[Layer], given: usize, closed: bool) -> String {
    let mut below = if closed { "<backingStore/>" } else { "" }.to_owned();
    for layer in chain[1..given].iter().rev() {
        below = format!(
            "<backingStore type='file'><format type='{}'/><source file='{}'/>{below}</backingStore>",
            layer.format, layer.path
        );
    }
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>{below}\
         <target dev='vda' bus='virtio'/></disk>",
        chain[0].path
    )
}

#[test]
fn chains_of_up_to_two_hundred_layers_are_as_with_libvirt_and_deeper_ones_refused() {
    let forest = Forest::new();
    let daemon = Daemon::start_unprivileged().unwrap();
    let tower = forest.tower(201);
    let mut tally = Tally::default();
    for (height, given) in [
        (24, 1),
        (25, 1),
        (25, 13),
        (26, 1),
        (27, 27),
        (40, 20),
        (201, 1),
        (201, 2),
    ] {
        let chain = &tower[tower.len() - height..];
        let guest = Guest::with(disk(chain, given, false));
        start(
            &daemon,
            &forest,
            &format!("{height}, {given}"),
            &guest,
            &mut tally,
        );
    }
    for height in [25, 26, 100, 150, 199, 200, 201] {
        let chain = &tower[tower.len() - height..];
        let guest = Guest::with(disk(chain, height, true));
        let theirs = daemon.translate(std::slice::from_ref(&guest)).remove(0);
        let compared = compare::translated(&daemon, &guest, &theirs, &mut tally.rows);
        tally.count(&format!("{height}, given"), &guest, compared);
    }
    tally.judge();
    assert!(tally.rows.contains(differences::DEEP));
}
