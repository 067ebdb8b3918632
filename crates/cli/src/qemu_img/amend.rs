//! `qemu-img amend`: changes options of an image that exists.
//!
//! All that is asked for is validated before anything is changed, in the order in which QEMU looks at it.

mod options;

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::keyval;
use super::nodes;
use super::open::{Opened, Purpose};
use super::options::{Cache, cache_mode};
use super::percent::Percent;
use super::program::{self, Program, Result, error, usage};
use super::snapshots;
use super::target::Target;
use catena::ops::Observer;
use catena_engine::qcow2::check::Watch;
use catena_engine::qcow2::{CheckOptions, metadata};
use catena_engine::{ErrorKind, StorageBytes};
use catena_format::Bytes;
use catena_format::qcow2::{
    Autoclear, Compatible, Header, Incompatible, Layout, RefcountWidth, Snapshot, Version,
};
use catena_storage::Storage;
use options::{Amendment, State};
use std::cmp::Ordering;

/// What QEMU was at when it found that it cannot take version 3 away.
const NOT_EXPANDED: &str = "Failed to turn zero into data clusters";

/// Features of version 3 that can be taken away.
const REMOVABLE: Incompatible = Incompatible::DIRTY;

const OPTIONS: Options = Options {
    short: "ho:f:t:pq",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        long("progress", 'p', Nothing),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("cache", 't', Argument),
        word("force", Nothing),
        word("object", Argument),
    ],
};

#[derive(Debug, Default)]
struct Request {
    image: ImageArgs,
    progress: bool,
    quiet: bool,
    cache: Option<String>,
    options: Option<String>,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut request = Request::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('o') => keyval::join(&mut request.options, &value).map_err(error)?,
            Key::Letter('t') => request.cache = Some(value),
            Key::Letter('p') => request.progress = true,
            Key::Letter('q') => request.quiet = true,
            _ => request.image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let Some(list) = request.options.clone() else {
        return Err(usage("Must specify options (-o)"));
    };
    if keyval::asks_for_help(&list)
        && let Some(format) = &request.image.format
    {
        return help(format);
    }
    // From here on there is a line for the progress, whatever comes of it.
    let percent = Percent::new(request.progress && !request.quiet);
    perform(program, &request, &list, &others, &percent)
}

fn perform(
    program: &Program,
    request: &Request,
    list: &str,
    others: &[String],
    percent: &Percent,
) -> Result<u8> {
    let [name] = others else {
        return Err(error("Expecting one image file name"));
    };
    if let Some(mode) = &request.cache {
        cache_mode(mode, Cache::Target)?;
    }
    request.image.check()?;
    let opened = request.image.open(
        program,
        name,
        Purpose {
            write: true,
            ..Purpose::default()
        },
    )?;
    if keyval::asks_for_help(list) {
        return help(opened.driver());
    }
    if opened.driver() != "qcow2" {
        return Err(not_supported(opened.driver()));
    }
    let amendment = Amendment::parse(list).map_err(error)?;
    percent.set(0.0);
    let done = amend(program, &opened, &amendment, percent);
    percent.set(100.0);
    done.map(|()| 0)
}

fn amend(program: &Program, opened: &Opened, amendment: &Amendment, percent: &Percent) -> Result<()> {
    let bytes = StorageBytes::new(&opened.held).map_err(error)?;
    let header = Header::read(&bytes).map_err(error)?;
    let snapshots = snapshots::read(&header, &bytes).map_err(error)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let backing_file = header.backing.as_ref().map(|backing| text(&backing.name));
    let backing_fmt = header.backing_format().map(text);
    let size = amendment.size.unwrap_or(header.virtual_size);
    let state = State {
        is_v3: header.version == Version::V3,
        refcount_bits: 1 << header.refcount_order,
        has_data_file: header.has_data_file(),
        data_file_raw: header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA),
        lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        backing_file: backing_file.as_deref(),
        backing_fmt: backing_fmt.as_deref(),
        v3_features: (header.incompatible - REMOVABLE).bits(),
        snapshots_need_v3: snapshots
            .iter()
            .any(|snapshot| snapshot.virtual_size != size || snapshot.vm_state_size > u64::from(u32::MAX)),
        snapshots: snapshots.len(),
    };
    amendment.check(&state).map_err(error)?;
    let is_v3 = amendment.is_v3(&state).map_err(error)?;
    let order = amendment.refcount_bits.map(u64::trailing_zeros);
    if let Some(order) = order
        && order < header.refcount_order
    {
        check_width(&opened.held, &header, order)?;
    }
    let downgrades = !is_v3 && state.is_v3;
    if downgrades
        && let Some((text, word)) = snapshots
            .iter()
            .find_map(|snapshot| snapshots::l1_fault(&header, snapshot))
    {
        program.say(text);
        return Err(error(format!("{NOT_EXPANDED}: {word}")));
    }
    // Whatever asks for version 3 comes after it, and before version 2.
    change(
        program,
        opened,
        &metadata::Amend {
            version: (is_v3 && !state.is_v3).then_some(Version::V3),
            refcount_order: order.filter(|order| *order != header.refcount_order),
            lazy_refcounts: amendment
                .lazy_refcounts
                .filter(|lazy| *lazy != state.lazy_refcounts),
            data_file: amendment.data_file.clone().map(String::into_bytes),
            data_file_raw: amendment.data_file_raw.filter(|raw| *raw != state.data_file_raw),
            backing: None,
        },
        &|done, total| {
            percent.walked(done, total);
            true
        },
    )?;
    if let Some(size) = amendment.size {
        resize(opened, header.virtual_size, size)?;
    }
    if downgrades {
        percent.expect(steps(&header, &snapshots));
        let version = Some(Version::V2);
        let lazy_refcounts = None;
        change(
            program,
            opened,
            &metadata::Amend {
                version,
                lazy_refcounts,
                ..metadata::Amend::default()
            },
            &|done, total| {
                percent.progress(done, total);
                true
            },
        )?;
        percent.progress(u64::MAX, u64::MAX);
    }
    Ok(())
}

/// What QEMU says of how far it is in taking version 3 away, and when: it counts entries of L1 tables.
fn steps(header: &Header, snapshots: &[Snapshot]) -> Vec<(u64, f32)> {
    let coverage = Layout::of(header).l2_coverage();
    let tables = snapshots.iter().map(|snapshot| u64::from(snapshot.l1_entries));
    let entries = u64::from(header.l1_entries) + tables.sum::<u64>();
    // More than a hundred steps are not told.
    let each = (entries / 128).max(1);
    (1..=entries / each)
        .map(|step| step * each)
        .map(|entry| {
            (
                entry.saturating_mul(coverage),
                entry as f32 * 100.0 / entries as f32,
            )
        })
        .collect()
}

fn change(
    program: &Program,
    opened: &Opened,
    amendment: &metadata::Amend,
    tell: &(dyn Fn(u64, u64) -> bool + Sync),
) -> Result<()> {
    if *amendment == metadata::Amend::default() {
        return Ok(());
    }
    let options = CheckOptions {
        watch: Watch::new(tell),
        ..CheckOptions::default()
    };
    metadata::amend(&opened.held, amendment, &options).map_err(|why| {
        let could_not = error(format!("Could not amend the image: {}", why.message()));
        match why.kind() {
            ErrorKind::Corrupt if amendment.version == Some(Version::V2) => {
                program.report(&could_not);
                error(format!("{NOT_EXPANDED}: Input/output error"))
            }
            _ => could_not,
        }
    })
}

fn resize(opened: &Opened, present: u64, size: u64) -> Result<()> {
    let done = match size.cmp(&present) {
        Ordering::Equal => return Ok(()),
        Ordering::Less => metadata::shrink(&opened.held, size, &CheckOptions::default()),
        Ordering::Greater => {
            let target = Target::open(opened)?;
            let Some(disk) = &target.qcow2 else { return Ok(()) };
            disk.grow(size).and_then(|()| target.finish())
        }
    };
    done.map_err(|why| match why.kind() {
        ErrorKind::TooLarge => error("Failed to grow the L1 table: File too large"),
        _ => error(why.message()),
    })
}

/// Whether refcounts fit into fewer bits. The first that does not is told.
fn check_width(storage: &dyn Storage, header: &Header, order: u32) -> Result<()> {
    let bytes = StorageBytes::new(storage).map_err(error)?;
    let width = RefcountWidth::of(header);
    let bits = 1_u64 << order;
    let largest = u64::MAX >> (64 - bits);
    let cluster_size = header.cluster_bits.size();
    let read = |offset: u64, len: u64| {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        bytes.read_some(offset, len).map_err(error)
    };
    let table = read(
        header.refcount_table_offset,
        u64::from(header.refcount_table_clusters) * cluster_size,
    )?;
    let per_block = (cluster_size * 8) >> header.refcount_order;
    for (number, raw) in (0_u64..).zip(table.chunks_exact(8)) {
        let offset = raw.try_into().map_or(0, u64::from_be_bytes) & !511;
        if offset == 0 {
            continue;
        }
        let block = read(offset, cluster_size)?;
        let too_many = (0..per_block)
            .filter_map(|index| Some((index, width.get(&block, index)?)))
            .find(|(_, refcount)| *refcount > largest);
        if let Some((index, refcount)) = too_many {
            let at = (number * per_block + index) << header.cluster_bits.get();
            return Err(error(format!(
                "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {at:#x} has a refcount of {refcount}"
            )));
        }
    }
    Ok(())
}

fn not_supported(format: &str) -> super::program::Failure {
    error(format!(
        "Format driver '{format}' does not support option amendment"
    ))
}

/// `-o help`: what can be changed.
fn help(format: &str) -> Result<u8> {
    match format {
        "qcow2" => {
            program::print(&options::help());
            Ok(0)
        }
        known if nodes::is_driver(known) => Err(not_supported(known)),
        other => Err(error(format!("Unknown file format '{other}'"))),
    }
}
