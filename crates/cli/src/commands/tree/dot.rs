//! A forest as a graph for Graphviz.

use super::model::Shown;
use crate::text::{dot_label, printable, size};
use std::io::{self, Write};

/// Writes the graph: a node for each image, an arrow for each reference.
pub fn draw(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "digraph forest {{\n  rankdir=BT;")?;
    writeln!(
        out,
        "  node [shape=box style=\"rounded,filled\" fillcolor=\"#f4f6f8\" color=\"#8a94a0\" fontname=\"sans-serif\" fontsize=11];"
    )?;
    writeln!(
        out,
        "  edge [color=\"#8a94a0\" fontname=\"sans-serif\" fontsize=9];"
    )?;
    for image in &shown.images {
        let number = image.number;
        let disk = image.virtual_size.map_or_else(|| "?".to_owned(), size);
        let lines = [
            printable(&image.path),
            format!(
                "{}, {disk}, {} on disk, {}",
                image.format,
                size(image.on_disk),
                image.age()
            ),
        ];
        let state = if image.broken().next().is_some() || image.trouble.is_some() || image.base_changed() {
            " color=\"#c0392b\""
        } else if !image.needed {
            " color=\"#2e8b57\""
        } else {
            ""
        };
        writeln!(out, "  i{number} [label={}{state}];", dot_label(&lines))?;
        let base = match image.base_changed() {
            true => (
                " color=\"#c0392b\" fontcolor=\"#c0392b\"",
                Some("not what it was".to_owned()),
            ),
            false => ("", None),
        };
        for (edge, (style, note)) in [
            (&image.backing, base),
            (&image.data_file, (" style=dotted", None)),
        ] {
            let Some(edge) = edge else { continue };
            let format = printable(edge.format.as_deref().unwrap_or_default());
            let label = dot_label(&std::iter::once(format).chain(note).collect::<Vec<_>>());
            match edge.to {
                Some(to) => writeln!(out, "  i{number} -> i{to} [label={label}{style}];")?,
                None => {
                    let name = dot_label(&[printable(&edge.text)]);
                    writeln!(
                        out,
                        "  gone{number} [label={name} style=\"rounded,dashed\" color=\"#c0392b\"];\n  i{number} -> gone{number} [style=dashed];"
                    )?;
                }
            }
        }
    }
    writeln!(out, "}}")
}
