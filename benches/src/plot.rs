//! The picture of cost against depth: one panel for each curve, both scales logarithmic.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What one contender took at one depth.
pub struct Point {
    /// The panel.
    pub curve: &'static str,
    /// The line.
    pub name: &'static str,
    /// Layers.
    pub depth: u64,
    /// Seconds.
    pub seconds: f64,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 6] = ["#0b6e4f", "#c1121f", "#1d4ed8", "#b45309", "#7c3aed", "#475569"];

/// What each contender took, by depth.
type Lines<'a> = BTreeMap<&'a str, Vec<(u64, f64)>>;

/// Draws all points.
pub fn svg(points: &[Point]) -> String {
    let mut curves: BTreeMap<&str, Lines> = BTreeMap::new();
    for point in points {
        let line = curves
            .entry(point.curve)
            .or_default()
            .entry(point.name)
            .or_default();
        line.push((point.depth, point.seconds));
    }
    let panel = WIDTH + LEFT + 130.0;
    let height = HEIGHT + TOP + 50.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        panel,
        height * curves.len() as f64
    );
    for (number, (title, lines)) in curves.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<g transform=\"translate(0 {:.0})\">",
            height * number as f64
        );
        draw(&mut svg, title, lines);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, title: &str, lines: &Lines) {
    let all = || lines.values().flatten();
    let deepest = all().map(|(depth, _)| *depth).max().unwrap_or(1).max(2) as f64;
    let low = all()
        .map(|(_, seconds)| seconds.log10())
        .fold(f64::MAX, f64::min)
        .floor();
    let high = all()
        .map(|(_, seconds)| seconds.log10())
        .fold(f64::MIN, f64::max)
        .ceil()
        .max(low + 1.0);
    let x = |depth: u64| LEFT + (depth as f64).log10() / deepest.log10() * WIDTH;
    let y = |seconds: f64| TOP + (high - seconds.log10()) / (high - low) * HEIGHT;
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">layers</text>",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 36.0
    );
    for power in low as i32..=high as i32 {
        let at = y(10f64.powi(power));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            at + 4.0,
            power_of_ten(power)
        );
    }
    let mut depths: Vec<u64> = all().map(|(depth, _)| *depth).collect();
    depths.sort_unstable();
    depths.dedup();
    for depth in depths {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{depth}</text>",
            x(depth),
            TOP + HEIGHT + 18.0
        );
    }
    for (number, (name, line)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let path: Vec<_> = line
            .iter()
            .map(|(depth, seconds)| format!("{:.1},{:.1}", x(*depth), y(*seconds)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (depth, seconds) in line {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x(*depth),
                y(*seconds)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            LEFT + WIDTH + 12.0,
            TOP + 14.0 + 18.0 * number as f64
        );
    }
}

fn power_of_ten(power: i32) -> String {
    match power {
        -9..=-7 => format!("{} ns", 10u32.pow((power + 9) as u32)),
        -6..=-4 => format!("{} µs", 10u32.pow((power + 6) as u32)),
        -3..=-1 => format!("{} ms", 10u32.pow((power + 3) as u32)),
        0..=4 => format!("{} s", 10u32.pow(power as u32)),
        _ => format!("1e{power} s"),
    }
}
