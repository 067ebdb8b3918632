//! Internal snapshots as QEMU lists them.

use super::qdict::{Object, Value};
use super::size::human;
use catena_format::Bytes;
use catena_format::limits;
use catena_format::qcow2::snapshot::Record;
use catena_format::qcow2::{Header, Snapshot};
use std::fmt::Write as _;

const NANOSECONDS: u64 = 1_000_000_000;

/// The snapshots that there are. Whether their L1 tables can be is not asked: see [`l1_fault`].
pub fn read(header: &Header, bytes: &dyn Bytes) -> Result<Vec<Snapshot>, catena_format::Error> {
    let records = Record::read_all(header, bytes)?;
    Ok(records.iter().map(|record| record.snapshot(header)).collect())
}

/// What QEMU says of a snapshot whose L1 table cannot be one: the sentence, and the system's word for it.
pub fn l1_fault(header: &Header, snapshot: &Snapshot) -> Option<(&'static str, &'static str)> {
    let bytes = u64::from(snapshot.l1_entries) * 8;
    if bytes > limits::QCOW2_L1_BYTES {
        return Some(("Snapshot L1 table too large", "File too large"));
    }
    let end = snapshot.l1_offset.saturating_add(bytes);
    if i64::try_from(end).is_err() || header.cluster_bits.offset_in_cluster(snapshot.l1_offset) != 0 {
        return Some(("Snapshot L1 table offset invalid", "Invalid argument"));
    }
    None
}

/// The list with its heading.
pub fn table(snapshots: &[Snapshot]) -> String {
    let mut out = "Snapshot list:\n".to_owned();
    row(&mut out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        let icount = snapshot
            .icount
            .map_or_else(|| "--".to_owned(), |icount| icount.to_string());
        row(
            &mut out,
            [
                &snapshot.id,
                &snapshot.name,
                &human(snapshot.vm_state_size),
                &date(snapshot.date_sec),
                &clock(snapshot.vm_clock_nsec),
                &icount,
            ],
        );
    }
    out
}

fn row(out: &mut String, [id, tag, size, date, clock, icount]: [&str; 6]) {
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}"
    );
}

/// A snapshot as `info --output json` has it.
pub fn json(snapshot: &Snapshot) -> Value {
    let mut object = Object::new()
        .with("id", snapshot.id.as_str())
        .with("name", snapshot.name.as_str())
        .with("vm-state-size", snapshot.vm_state_size)
        .with("date-sec", snapshot.date_sec)
        .with("date-nsec", snapshot.date_nsec)
        .with("vm-clock-sec", snapshot.vm_clock_nsec / NANOSECONDS)
        .with("vm-clock-nsec", snapshot.vm_clock_nsec % NANOSECONDS);
    if let Some(icount) = snapshot.icount {
        object.set("icount", icount);
    }
    object.into()
}

/// A time of this place.
fn date(seconds: u32) -> String {
    let time = jiff::Timestamp::from_second(seconds.into()).unwrap_or_default();
    let here = time.to_zoned(jiff::tz::TimeZone::system());
    here.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn clock(nanoseconds: u64) -> String {
    let (seconds, rest) = (nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS);
    format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        rest / 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_have_hours_and_milliseconds() {
        assert_eq!(clock(3_723_004_000_000), "0001:02:03.004");
    }
}
