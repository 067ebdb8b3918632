//! Documents of any style, changed: what a change is not about keeps every byte.
#![cfg(test)]

use catena::reference::Source;
use catena_format::Format;
use catena_virt::edit::Edit;
use catena_virt::{Below, Document};
use proptest::prelude::*;
use std::path::Path;

/// A domain in somebody's own style: quotes, blanks, comments, the order of children.
#[derive(Clone, Debug)]
struct Style {
    double: bool,
    newline: &'static str,
    unit: &'static str,
    comments: bool,
    target_first: bool,
}

fn style() -> impl Strategy<Value = Style> {
    (
        any::<bool>(),
        proptest::sample::select(vec!["\n", ""]),
        proptest::sample::select(vec!["  ", "\t", "    ", " "]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(double, newline, unit, comments, target_first)| Style {
            double,
            newline,
            unit,
            comments,
            target_first,
        })
}

fn layer() -> impl Strategy<Value = String> {
    "/i/[a-z][a-z ä&<']{0,6}[a-z]"
}

fn escaped(text: &str) -> String {
    let mut into = String::new();
    assert!(catena::reference::escape_xml(text, &mut into));
    into
}

fn document(style: &Style, layers: &[String], closed: bool) -> String {
    let line = |depth: usize, text: &str| format!("{}{}{text}", style.newline, style.unit.repeat(depth));
    let comment = if style.comments {
        line(3, "<!-- <backingStore/> type='x' -->")
    } else {
        String::new()
    };
    let target = line(3, "<target dev='vda'  bus='virtio'/>");
    let mut nested = String::new();
    if closed {
        nested = line(2 + layers.len(), "<backingStore />");
    }
    for (depth, name) in layers.iter().enumerate().skip(1).rev() {
        let depth = depth + 2;
        nested = [
            line(depth, "<backingStore type='file'>"),
            line(depth + 1, "<format type='qcow2'/>"),
            line(depth + 1, &format!("<source file='{}' ></source>", escaped(name))),
            nested,
            line(depth, "</backingStore>"),
        ]
        .concat();
    }
    let source = line(3, &format!("<source file='{}'/>", escaped(&layers[0])));
    let (first, last) = if style.target_first {
        (target, String::new())
    } else {
        (String::new(), target)
    };
    let text = [
        "<domain type='kvm'>".to_owned(),
        line(1, "<devices>"),
        line(2, "<disk device='disk' type='file'>"),
        first,
        line(3, "<driver name='qemu' type='qcow2'/>"),
        comment.clone(),
        source,
        comment,
        nested,
        last,
        line(2, "</disk>"),
        line(1, "</devices>"),
        line(0, "</domain>"),
    ]
    .concat();
    if style.double {
        text.replace('\'', "\"")
    } else {
        text
    }
}

fn paths(text: &str) -> Vec<String> {
    let document = Document::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let layers = document.disks[0].layers.iter();
    layers.map(|layer| layer.source().unwrap().to_string()).collect()
}

proptest! {
    #[test]
    fn a_layer_that_is_replaced_and_put_back_leaves_the_text_as_it_was(
        style in style(), layers in proptest::collection::vec(layer(), 1..5), closed: bool, at in 0..5_usize, new in layer(),
    ) {
        let text = document(&style, &layers, closed);
        let at = at % layers.len();
        let change = |text: &str, name: &str, format| {
            let document = Document::parse(text).unwrap();
            let mut edit = Edit::new(&document);
            edit.replace(&document.disks[0], at, Some(&Source::file(name)), Some(format)).unwrap();
            edit.finish().unwrap()
        };
        let changed = change(&text, &new, Format::Vmdk);
        let mut expected = layers.clone();
        expected[at].clone_from(&new);
        prop_assert_eq!(paths(&changed), expected);
        prop_assert_eq!(change(&changed, &layers[at], Format::Qcow2), text);
    }

    #[test]
    fn relocated_paths_come_back(style in style(), layers in proptest::collection::vec(layer(), 1..5), closed: bool) {
        let text = document(&style, &layers, closed);
        let change = |text: &str, from: &str, to: &str| {
            let document = Document::parse(text).unwrap();
            let mut edit = Edit::new(&document);
            assert_eq!(edit.relocate(Path::new(from), Path::new(to)).unwrap(), layers.len());
            edit.finish().unwrap()
        };
        let moved = change(&text, "/i", "/new & far/dir");
        prop_assert!(paths(&moved).iter().all(|path| path.starts_with("/new & far/dir/")));
        prop_assert_eq!(change(&moved, "/new & far/dir", "/i"), text);
    }

    #[test]
    fn what_is_put_below_a_layer_can_be_taken_away_again(
        style in style(), layers in proptest::collection::vec(layer(), 1..5), closed: bool, new in layer(),
    ) {
        let text = document(&style, &layers, closed);
        let first = Document::parse(text.as_str()).unwrap();
        let mut edit = Edit::new(&first);
        edit.strip(&first.disks[0]);
        let stripped = edit.finish().unwrap();
        prop_assert_eq!(paths(&stripped), &layers[..1]);
        let second = Document::parse(stripped.as_str()).unwrap();
        let mut edit = Edit::new(&second);
        edit.set_backing(&second.disks[0], 0, Some((&Source::file(&new), Format::Raw))).unwrap();
        let set = edit.finish().unwrap();
        prop_assert_eq!(paths(&set), vec![layers[0].clone(), new.clone()]);
        // It looks like what is around it.
        prop_assert_eq!(set.contains('\''), text.contains('\''));
        prop_assert_eq!(set.matches('\n').count() > 0, text.matches('\n').count() > 0);
        let third = Document::parse(set.as_str()).unwrap();
        let mut edit = Edit::new(&third);
        edit.set_backing(&third.disks[0], 1, None).unwrap();
        let ended = edit.finish().unwrap();
        let fourth = Document::parse(ended.as_str()).unwrap();
        prop_assert!(matches!(fourth.disks[0].below, Below::Closed(_)));
        let mut edit = Edit::new(&fourth);
        edit.strip(&fourth.disks[0]);
        prop_assert_eq!(edit.finish().unwrap(), stripped);
    }
}
