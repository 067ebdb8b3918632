//! Documents of any style, changed: what a change is not about keeps every byte, and what it is about says what was asked for.
#![cfg(test)]

mod documents;

use catena::reference::Source;
use catena::{Chain, Policy};
use catena_format::Format;
use catena_testkit::{Dice, Folder};
use catena_virt::edit::Edit;
use catena_virt::{Below, Disk, Document};
use documents::{Choices, End, Image, domain};
use proptest::prelude::*;
use proptest::sample::select;
use roxmltree::Node;
use std::ops::Range;
use std::path::Path;

fn layer() -> impl Strategy<Value = String> {
    "/i/[a-z][a-z ä&<'\"]{0,6}[a-z]"
}

fn end() -> impl Strategy<Value = End> {
    select(vec![End::Open, End::Closed])
}

/// A document, and the paths of the layers of its first disk.
fn documents() -> impl Strategy<Value = (String, Vec<String>, End)> {
    let choices = proptest::collection::vec(any::<u8>(), 0..400);
    let layers = proptest::collection::vec(layer(), 1..5);
    (choices, layers, end(), any::<bool>()).prop_map(|(bytes, layers, end, odd)| {
        let images: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(number, path)| Image {
                path,
                format: if number + 1 == layers.len() && number > 0 {
                    "raw"
                } else {
                    "qcow2"
                },
            })
            .collect();
        let text = domain(&mut Choices::new(&bytes), &images, end, odd);
        (text, layers, end)
    })
}

fn escaped(text: &str) -> String {
    let mut into = String::new();
    assert!(catena::reference::escape_xml(text, &mut into));
    into
}

/// The paths of a disk's layers.
fn paths(disk: &Disk) -> Vec<String> {
    let layers = disk.layers.iter();
    layers.map(|layer| layer.source().unwrap().to_string()).collect()
}

fn read(text: &str) -> Document {
    Document::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The document after a change of its first disk.
fn changed(text: &str, change: impl FnOnce(&mut Edit<'_>, &Disk)) -> String {
    let document = read(text);
    let mut edit = Edit::new(&document);
    change(&mut edit, &document.disks[0]);
    edit.finish().unwrap()
}

/// Where the parts of the first disk stand, told by nobody of ours.
struct Places {
    /// The types of `<disk>` and of `<driver>` or each `<format>`.
    formats: Vec<Range<usize>>,
    /// Each layer's `<source>`, and the path in it.
    sources: Vec<(Range<usize>, Range<usize>)>,
    /// Each `<backingStore>`.
    stores: Vec<Range<usize>>,
}

impl Places {
    fn of(text: &str) -> Self {
        let xml = roxmltree::Document::parse(text).unwrap();
        let disk = xml.descendants().find(|node| node.has_tag_name("disk")).unwrap();
        let child = |node: Node<'_, '_>, name: &str| {
            let child = node.children().find(|child| child.has_tag_name(name))?;
            Some(child.id()).and_then(|id| xml.get_node(id))
        };
        let value = |node: Node<'_, '_>, name: &str| node.attribute_node(name).unwrap().range_value();
        let mut places = Self {
            formats: Vec::new(),
            sources: Vec::new(),
            stores: Vec::new(),
        };
        let mut at = Some(disk);
        while let Some(layer) = at {
            if let Some(source) = child(layer, "source") {
                places.sources.push((source.range(), value(source, "file")));
                let format = child(layer, "format").or(child(layer, "driver")).unwrap();
                places.formats.push(value(format, "type"));
            }
            at = child(layer, "backingStore");
            places.stores.extend(at.map(|store| store.range()));
        }
        places
    }

    /// Where a layer's chain below it stands, or would.
    fn below(&self, layer: usize) -> Range<usize> {
        let end = self.sources[layer].0.end;
        self.stores.get(layer).cloned().unwrap_or(end..end)
    }
}

/// Whether a text has all of another but those parts.
fn keeps(before: &str, after: &str, mut parts: Vec<Range<usize>>) -> bool {
    parts.sort_by_key(|part| (part.start, part.end));
    let starts = parts.iter().map(|part| part.end);
    let ends = parts.iter().map(|part| part.start).chain([before.len()]);
    let mut pieces: Vec<_> = std::iter::once(0).chain(starts).zip(ends).collect();
    let (first, last) = (pieces.remove(0), pieces.pop().unwrap());
    let piece = |(from, to): (usize, usize)| before.get(from..to).unwrap();
    let rest = after.strip_prefix(piece(first));
    let Some(mut rest) = rest.and_then(|rest| rest.strip_suffix(piece(last))) else {
        return false;
    };
    for kept in pieces.into_iter().map(piece) {
        match rest.split_once(kept) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    true
}

/// A text without an element, and without its line where it began one.
fn without(text: &str, element: Range<usize>) -> String {
    let before = text.get(..element.start).unwrap();
    let line = before.trim_end_matches([' ', '\t']);
    let kept = line
        .strip_suffix("\r\n")
        .or(line.strip_suffix('\n'))
        .unwrap_or(before);
    format!("{kept}{}", text.get(element.end..).unwrap())
}

/// Whether every line ends as the lines of another text do.
fn breaks_lines_as(before: &str, after: &str) -> bool {
    let lone = |text: &str| text.matches('\n').count() - text.matches("\r\n").count();
    let (mixed, breaks) = (before.contains("\r\n"), before.contains('\n'));
    !after.contains("\r\r")
        && if mixed {
            lone(after) == 0
        } else {
            breaks || lone(after) == 0
        }
}

proptest! {
    #[test]
    fn a_layer_that_is_replaced_is_another_and_nothing_else_is(
        (text, layers, _) in documents(), at in 0..5_usize, new in layer(),
    ) {
        let at = at % layers.len();
        let replace = |text: &str| changed(text, |edit, disk| {
            // What is below raw images no one would see.
            let format = if at + 1 == layers.len() && disk.layers[at].cache_size.is_none() { Format::Vmdk } else { Format::Qcow2 };
            edit.replace(disk, at, Some(&Source::file(&new)), Some(format)).unwrap();
        });
        let after = replace(&text);
        let mut expected = layers.clone();
        expected[at].clone_from(&new);
        prop_assert_eq!(paths(&read(&after).disks[0]), expected);
        let places = Places::of(&text);
        prop_assert!(keeps(&text, &after, vec![places.sources[at].1.clone(), places.formats[at].clone()]), "{text}\n{after}");
        let there = Places::of(&after).sources[at].1.clone();
        prop_assert_eq!(after.get(there).unwrap(), escaped(&new));
        prop_assert_eq!(replace(&after), after);
    }

    #[test]
    fn relocated_paths_are_elsewhere_and_come_back((text, layers, _) in documents()) {
        let relocate = |text: &str, from: &str, to: &str| {
            let document = read(text);
            let mut edit = Edit::new(&document);
            assert_eq!(edit.relocate(Path::new(from), Path::new(to)).unwrap(), layers.len());
            edit.finish().unwrap()
        };
        let moved = relocate(&text, "/i", "/new & far/dir");
        let expected: Vec<_> = layers.iter().map(|path| path.replacen("/i", "/new & far/dir", 1)).collect();
        prop_assert_eq!(paths(&read(&moved).disks[0]), expected);
        let values = |text: &str| Places::of(text).sources.into_iter().map(|(_, value)| value).collect::<Vec<_>>();
        prop_assert!(keeps(&text, &moved, values(&text)), "{text}\n{moved}");
        let back = relocate(&moved, "/new & far/dir", "/i");
        prop_assert_eq!(paths(&read(&back).disks[0]), layers.clone());
        prop_assert!(keeps(&text, &back, values(&text)));
        // From there on it is written in one way.
        prop_assert_eq!(relocate(&relocate(&back, "/i", "/x"), "/x", "/i"), back);
    }

    #[test]
    fn without_its_chain_a_disk_is_as_it_was_without((text, layers, end) in documents()) {
        let stripped = changed(&text, |edit, disk| edit.strip(disk));
        let document = read(&stripped);
        prop_assert_eq!(paths(&document.disks[0]), &layers[..1]);
        prop_assert_eq!(&document.disks[0].below, &Below::Unsaid);
        let places = Places::of(&text);
        match places.stores.first() {
            Some(store) => prop_assert_eq!(&stripped, &without(&text, store.clone())),
            None => prop_assert!(stripped == text && layers.len() == 1 && end == End::Open),
        }
        let mut edit = Edit::new(&document);
        edit.strip(&document.disks[0]);
        prop_assert!(edit.is_empty());
    }

    #[test]
    fn what_is_put_below_a_layer_is_there_and_can_be_taken_away_again(
        (text, layers, _) in documents(), at in 0..5_usize, new in layer(),
    ) {
        // Nothing stands on a raw image.
        let at = at % layers.len().saturating_sub(1).max(1);
        let new = Source::file(&new);
        let set = |text: &str, backing: Option<&Source>| changed(text, |edit, disk| {
            edit.set_backing(disk, at, backing.map(|backing| (backing, Format::Raw))).unwrap();
        });
        let with = set(&text, Some(&new));
        let document = read(&with);
        let mut expected = layers[..=at].to_vec();
        expected.push(new.to_string());
        prop_assert_eq!(paths(&document.disks[0]), expected);
        prop_assert!(keeps(&text, &with, vec![Places::of(&text).below(at)]), "{text}\n{with}");
        prop_assert!(breaks_lines_as(&text, &with), "{text:?}\n{with:?}");
        prop_assert_eq!(&set(&with, Some(&new)), &with);
        // It looks like what is around it.
        let store = Places::of(&with).stores[at].clone();
        let quote = |text: &str| text.find(['\'', '"']).and_then(|at| text.get(at..=at).map(str::to_owned));
        let around = text.get(..Places::of(&text).sources[at].1.start).unwrap();
        prop_assert_eq!(quote(with.get(store).unwrap()).unwrap(), around.get(around.len() - 1..).unwrap());
        let ended = set(&with, None);
        let document = read(&ended);
        prop_assert_eq!(paths(&document.disks[0]), &layers[..=at]);
        prop_assert!(matches!(document.disks[0].below, Below::Closed(_)));
        prop_assert_eq!(&set(&ended, None), &ended);
        prop_assert!(keeps(&text, &ended, vec![Places::of(&text).below(at)]));
    }

    #[test]
    fn an_overlay_stands_on_what_the_disk_was((text, layers, end) in documents(), new in layer()) {
        let overlay = Source::file(&new);
        let document = read(&text);
        let disk = &document.disks[0];
        let mut edit = Edit::new(&document);
        if edit.put_over(disk, &overlay, Format::Qcow2).is_err() {
            // A disk that is being copied.
            prop_assert!(disk.mirror.is_some());
            return Ok(());
        }
        let after = edit.finish().unwrap();
        let over = read(&after);
        let said = layers.len() > 1 || end == End::Closed || !disk.layers[0].details.seclabels.is_empty();
        let expected: Vec<_> = if said { [std::slice::from_ref(&new), &layers].concat() } else { vec![new.clone()] };
        prop_assert_eq!(paths(&over.disks[0]), expected);
        prop_assert_eq!(matches!(over.disks[0].below, Below::Closed(_)), end == End::Closed);
        let places = Places::of(&text);
        let below = places.below(0);
        let mut parts = vec![
            places.sources[0].1.clone(), places.formats[0].clone(), below.start..below.start, below.end..below.end,
        ];
        parts.dedup();
        prop_assert!(keeps(&text, &after, parts), "{text}\n{after}");
        prop_assert!(breaks_lines_as(&text, &after), "{text:?}\n{after:?}");
    }

    #[test]
    fn a_chain_that_is_written_down_is_written_once_and_can_be_taken_out(
        bytes in proptest::collection::vec(any::<u8>(), 0..400), given in 1..4_usize, data: bool, pin: bool, odd: bool,
    ) {
        let found = FOUND.with(|found| found.path().to_owned());
        let file = |name: &str| found.join(name).display().to_string();
        let names = [file(if data { "data.qcow2" } else { "top.qcow2" }), file("mid.qcow2"), file("base.raw")];
        let images: Vec<_> = names.iter().map(|path| Image {
            path,
            format: if path.ends_with("raw") { "raw" } else { "qcow2" },
        }).take(given).collect();
        let text = domain(&mut Choices::new(&bytes), &images, End::Open, odd);
        let write = |text: &str| changed(text, |edit, disk| {
            let chain = chain(disk);
            if pin { edit.pin(disk, &chain) } else { edit.complete(disk, &chain) }.unwrap();
        });
        let after = write(&text);
        let document = read(&after);
        let disk = &document.disks[0];
        prop_assert_eq!(paths(disk), names);
        prop_assert_eq!(matches!(disk.below, Below::Closed(_)), pin);
        prop_assert_eq!(disk.layers[0].data_store.is_some(), data);
        let places = Places::of(&text);
        let mut parts = vec![places.below(given - 1)];
        if data {
            // The path is the first attribute or the second, and the element's end is its own or a tag.
            let (source, value) = places.sources[0].clone();
            let behind = text.get(value.end..source.end).unwrap();
            let close = behind.rfind("</").or(behind.rfind("/>")).unwrap();
            let kept = behind.get(..close).unwrap().trim_end().len();
            parts.push(value.end + kept..source.end);
        }
        prop_assert!(keeps(&text, &after, parts), "{text}\n{after}");
        prop_assert!(breaks_lines_as(&text, &after), "{text:?}\n{after:?}");
        prop_assert_eq!(&write(&after), &after);
        let strip = |text: &str| changed(text, |edit, disk| edit.strip(disk));
        if !data {
            prop_assert_eq!(strip(&after), strip(&text));
            // And once more the same.
            prop_assert_eq!(write(&strip(&after)), write(&strip(&text)));
        }
    }
}

thread_local! {
    /// base.raw <- mid.qcow2 <- top.qcow2, and one more that keeps its data beside it.
    static FOUND: Folder = chains();
}

fn chains() -> Folder {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 1M");
    folder.img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    folder.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    folder.img("create -q -f qcow2 -o data_file=data.raw -b mid.qcow2 -F qcow2 data.qcow2");
    folder
}

fn chain(disk: &Disk) -> Chain {
    disk.chain(&Policy::libvirt()).unwrap()
}

#[test]
fn what_was_valid_by_libvirts_schema_stays_so() {
    let folder = chains();
    let file = |name: &str| folder.file(name).display().to_string();
    let (top, mid, data) = (file("top.qcow2"), file("mid.qcow2"), file("data.qcow2"));
    let mut dice = Dice::new(11);
    for number in 0..6 {
        let bytes: Vec<_> = (0..400).map(|_| dice.any().to_le_bytes()[0]).collect();
        let active = Image {
            path: if number % 2 == 0 { &top } else { &data },
            format: "qcow2",
        };
        let below = Image {
            path: &mid,
            format: "qcow2",
        };
        let images = if number < 3 {
            vec![active]
        } else {
            vec![active, below]
        };
        let text = domain(&mut Choices::new(&bytes), &images, End::Open, number > 0);
        let valid = |text: &str| {
            std::fs::write(folder.file("vm.xml"), text).unwrap();
            folder.run("virt-xml-validate", &["vm.xml", "domain"]);
        };
        valid(&text);
        let new = Source::file("/i/new & \"other\"");
        valid(&changed(&text, |edit, disk| {
            edit.complete(disk, &chain(disk)).unwrap()
        }));
        let pinned = changed(&text, |edit, disk| edit.pin(disk, &chain(disk)).unwrap());
        valid(&pinned);
        valid(&changed(&pinned, |edit, disk| {
            edit.set_backing(disk, 0, Some((&new, Format::Raw))).unwrap();
        }));
        valid(&changed(&pinned, |edit, disk| {
            edit.replace(disk, 1, Some(&new), None).unwrap()
        }));
        if read(&pinned).disks[0].mirror.is_none() {
            valid(&changed(&pinned, |edit, disk| {
                edit.put_over(disk, &new, Format::Qcow2).unwrap()
            }));
        }
    }
}

#[test]
fn every_chain_of_a_disk_is_taken_out() {
    let text = "<disk><source file='/a'/><backingStore/>\n <backingStore type='file'><format type='raw'/><source file='/b'/>\
                </backingStore><target dev='vda'/></disk>";
    let stripped = changed(text, |edit, disk| edit.strip(disk));
    assert_eq!(stripped, "<disk><source file='/a'/><target dev='vda'/></disk>");
}
