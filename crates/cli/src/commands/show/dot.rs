//! A chain as a graph for Graphviz.

use super::model::{Recorded, Shown, ShownEnd, ShownLayer};
use super::tree::features;
use crate::text::{dot_label, percent, printable, size};
use std::io::{self, Write};

/// Writes the graph: a node for each image, an arrow for each reference, data files beside their images.
pub fn draw(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "digraph chain {{")?;
    writeln!(out, "  label={};", dot_label(&[printable(&shown.target)]))?;
    writeln!(out, "  labelloc=t; fontname=\"sans-serif\"; rankdir=TB;")?;
    writeln!(
        out,
        "  node [shape=box style=\"rounded,filled\" fillcolor=\"#f4f6f8\" color=\"#8a94a0\" fontname=\"sans-serif\" fontsize=11];"
    )?;
    writeln!(
        out,
        "  edge [color=\"#8a94a0\" fontname=\"sans-serif\" fontsize=9];"
    )?;
    for layer in &shown.layers {
        node(shown, layer, out)?;
    }
    let last = shown.layers.last().map(|layer| layer.index);
    let (label, style, link) = match &shown.end {
        ShownEnd::Terminated => return writeln!(out, "}}"),
        ShownEnd::OpenEnded { recorded, .. } => (
            vec!["open end".to_owned(), "not on this host".to_owned()],
            "style=\"rounded,dashed\" color=\"#b58900\"",
            recorded,
        ),
        ShownEnd::Broken {
            error,
            recorded,
            name,
            ..
        } => {
            let name = name
                .clone()
                .or_else(|| recorded.as_ref().map(|link| link.text.clone()));
            let lines = vec![printable(&name.unwrap_or_default()), printable(&error.full())];
            (
                lines,
                "style=\"rounded,dashed\" color=\"#c0392b\" fontcolor=\"#c0392b\"",
                recorded,
            )
        }
    };
    writeln!(out, "  end [label={} {style}];", dot_label(&label))?;
    if let Some(last) = last {
        writeln!(
            out,
            "  l{last} -> end [label={} style=dashed];",
            reference(link.as_ref())
        )?;
    }
    writeln!(out, "}}")
}

fn node(shown: &Shown, layer: &ShownLayer, out: &mut dyn Write) -> io::Result<()> {
    let index = layer.index;
    let mut lines = vec![printable(&layer.name)];
    let size_of = layer
        .virtual_size
        .map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
    lines.push(format!("{} ({}){size_of}", layer.format, layer.origin));
    if let Some(bytes) = layer.contributes {
        let share = percent(bytes.data, shown.counted_data());
        lines.push(format!("holds {} of the data ({share})", size(bytes.data)));
    }
    let features = features(layer);
    if !features.is_empty() {
        lines.push(features.join(", "));
    }
    let active = if index == 0 {
        " penwidth=2 color=\"#2e8b57\""
    } else {
        ""
    };
    writeln!(out, "  l{index} [label={}{active}];", dot_label(&lines))?;
    if let Some(above) = index.checked_sub(1) {
        writeln!(
            out,
            "  l{above} -> l{index} [label={}];",
            reference(layer.recorded.as_ref())
        )?;
    }
    let Some(file) = &layer.data_file else {
        return Ok(());
    };
    let state = if file.error.is_some() {
        " color=\"#c0392b\" style=dashed"
    } else {
        ""
    };
    let label = dot_label(&[printable(&file.text), "data file".to_owned()]);
    writeln!(out, "  d{index} [label={label} shape=cylinder{state}];")?;
    writeln!(out, "  l{index} -> d{index} [style=dotted];")?;
    writeln!(out, "  {{ rank=same; l{index}; d{index}; }}")
}

fn reference(link: Option<&Recorded>) -> String {
    let format = |link: &Recorded| link.format.clone().unwrap_or_else(|| "no format".to_owned());
    dot_label(&link.map_or_else(Vec::new, |link| vec![printable(&format(link))]))
}
