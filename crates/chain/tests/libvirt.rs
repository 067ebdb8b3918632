//! What libvirt detects of a paused guest's disk, in its live XML, is what Catena detects; and where libvirt refuses the
//! chain, Catena refuses it in the same words.
#![cfg(test)]

use anyhow::{Context, Result, ensure};
use catena::{Break, Chain, End, Format, Policy, Reading, Reference, Start, detect};
use catena_testkit::images::{self, Built, Features};
use catena_testkit::libvirt::Daemon;
use catena_testkit::proptest::prelude::*;
use std::path::Path;

/// A layer as libvirt's XML has it: the file, the format, and the data file.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    file: String,
    format: String,
    data_file: Option<String>,
}

/// The layers of a `<disk>`, and whether its end is marked.
fn told(xml: &str) -> Result<(Vec<Told>, bool)> {
    let document = roxmltree::Document::parse(xml)?;
    let mut node = document.root_element();
    let mut layers = Vec::new();
    loop {
        let child = |name: &str| node.children().find(|child| child.has_tag_name(name));
        let source = child("source").context("no source")?;
        let format = child("format").or_else(|| child("driver")).context("no format")?;
        let file = |source: roxmltree::Node<'_, '_>| {
            source
                .attribute("file")
                .or(source.attribute("dev"))
                .map(str::to_owned)
        };
        let store = source.children().find(|child| child.has_tag_name("dataStore"));
        layers.push(Told {
            file: file(source).context("no file")?,
            format: format.attribute("type").context("no type")?.to_owned(),
            data_file: store
                .and_then(|store| store.children().find(|child| child.has_tag_name("source")))
                .and_then(file),
        });
        match child("backingStore") {
            None => return Ok((layers, false)),
            Some(backing) if !backing.has_children() => return Ok((layers, true)),
            Some(backing) => node = backing,
        }
    }
}

fn ours(chain: &Chain) -> (Vec<Told>, bool) {
    let layers = chain.layers.iter().map(|layer| Told {
        file: layer.name(),
        format: layer.format.libvirt().to_owned(),
        data_file: layer
            .data_file
            .as_ref()
            .and_then(|data| data.source.as_ref())
            .map(ToString::to_string),
    });
    (layers.collect(), matches!(chain.end, End::Terminated))
}

fn found(top: &Path, format: &str) -> Chain {
    // libvirt looks at the whole name of the image it was given.
    let top = top.canonicalize().unwrap();
    detect(&Start::at(top, Format::from_qemu(format)), &Policy::libvirt())
}

fn compare(daemon: &Daemon, built: &Built) -> Result<()> {
    let chain = found(&built.top, built.layers[0].format);
    // Some names that QEMU understands, such as `file:`, libvirt's parser does not: our reading of its rules says which.
    let names = built
        .layers
        .iter()
        .filter_map(|layer| layer.backing_name.as_deref());
    let refusals: Vec<_> = names
        .filter_map(|name| Reference::parse(name, Reading::Libvirt).err())
        .map(|error| error.to_string())
        .collect();
    if !refusals.is_empty() {
        let said = daemon
            .detect(&built.top, built.layers[0].format)
            .err()
            .context("libvirt takes the names")?;
        ensure!(
            refusals.iter().any(|refusal| said.contains(refusal)) || chain.broken().is_some(),
            "{said}"
        );
        return Ok(());
    }
    match (daemon.detect(&built.top, built.layers[0].format), &chain.end) {
        (Ok(xml), End::Terminated) => {
            let (theirs, ended) = told(&xml).with_context(|| xml.clone())?;
            let (mut ours, our_end) = ours(&chain);
            for (our, their) in ours.iter_mut().zip(&theirs) {
                // libvirt 11.3 walks the extensions unaligned, and loses a data file behind a backing format.
                if their.data_file.is_none() && loses_data_file(&chain, &our.file) {
                    our.data_file = None;
                }
            }
            ensure!(
                (&ours, our_end) == (&theirs, ended),
                "{ours:?} is for libvirt {theirs:?}"
            );
        }
        (Err(said), End::Broken(broken)) => {
            let reason = broken
                .error
                .message()
                .split(": No such file")
                .next()
                .unwrap_or_default()
                .to_owned();
            ensure!(said.contains(&reason), "we say '{reason}', libvirt says '{said}'");
        }
        (Err(said), _) => {
            // It found nothing wrong with the chain; then QEMU refused an image.
            ensure!(
                said.contains("process exited") || said.contains("internal error"),
                "{said}"
            );
            ensure!(
                !said.contains("backing store for") && !said.contains("was not specified"),
                "{said}"
            );
        }
        (Ok(_), End::Broken(broken)) if is_leaf_to_libvirt_alone(broken) => {}
        (Ok(xml), end) => ensure!(false, "we say {end:?}, libvirt says {xml}"),
    }
    Ok(())
}

/// libvirt takes a probed image for a leaf although it names a data file. We do not.
fn is_leaf_to_libvirt_alone(broken: &Break) -> bool {
    broken
        .probed
        .as_ref()
        .is_some_and(|(_, said)| said.backing.is_none() && said.data_file.is_some())
}

fn loses_data_file(chain: &Chain, file: &str) -> bool {
    let layer = chain.layers.iter().find(|layer| layer.name() == file);
    layer
        .and_then(|layer| layer.header.as_ref())
        .is_some_and(|header| header.backing_format().is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_running_guests_chain_is_the_chain_that_is_detected(
        spec in images::chains(Features { encryption: false, huge: false, dirty: false, ..Features::all() }, 1..=5)
    ) {
        static DAEMON: std::sync::OnceLock<Daemon> = std::sync::OnceLock::new();
        let daemon = DAEMON.get_or_init(|| Daemon::start().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let built = spec.build(dir.path()).unwrap();
        compare(daemon, &built).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
    }
}
