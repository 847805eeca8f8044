//! Hit rates over cache sizes as a picture: SVG by hand, for a chart of a few lines needs no library.

use crate::output::size_text;
use std::fmt::{self, Write};

/// The picture, and the part of it that the lines are drawn in.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 500.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 360.0;

/// Told apart by people who do not see all colours, too (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"];

/// A line of the chart.
#[derive(Debug, Default)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Bytes of cache, and the part of the opens that were hits.
    pub points: Vec<(u64, f64)>,
}

/// The chart as an SVG document.
pub fn svg(title: &str, bytes: u64, lines: &[Line]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = draw(&mut out, title, bytes, lines);
    out
}

fn draw(out: &mut String, title: &str, bytes: u64, lines: &[Line]) -> fmt::Result {
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">"
    )?;
    writeln!(out, "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>")?;
    text(out, LEFT, 28.0, "start", title)?;
    axes(out, bytes)?;
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = line.points.iter().map(|&(cache, rate)| (x(cache, bytes), y(rate)));
        let path: Vec<String> = points.clone().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        )?;
        for (x, y) in points {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>")?;
        }
        let at = TOP + 10.0 + 20.0 * number as f64;
        writeln!(out, "<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>", RIGHT + 20.0, at - 6.0)?;
        text(out, RIGHT + 40.0, at, "start", &line.name)?;
    }
    writeln!(out, "</svg>")
}

fn axes(out: &mut String, bytes: u64) -> fmt::Result {
    for tenth in [0, 2, 4, 6, 8, 10] {
        let part = f64::from(tenth) / 10.0;
        let (at_x, at_y) = (LEFT + part * (RIGHT - LEFT), y(part));
        writeln!(out, "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at_y:.1}\" y2=\"{at_y:.1}\" stroke=\"#dddddd\"/>")?;
        text(out, LEFT - 8.0, at_y + 4.0, "end", &format!("{} %", tenth * 10))?;
        text(out, at_x, BOTTOM + 20.0, "middle", &format!("{} %", tenth * 10))?;
    }
    let label = format!("cache, as part of all files ({})", size_text(bytes));
    text(out, (LEFT + RIGHT) / 2.0, BOTTOM + 44.0, "middle", &label)?;
    text(out, LEFT, TOP - 6.0, "middle", "hits")
}

fn x(cache: u64, bytes: u64) -> f64 {
    LEFT + (cache as f64 / bytes.max(1) as f64).min(1.0) * (RIGHT - LEFT)
}

fn y(rate: f64) -> f64 {
    BOTTOM - rate * (BOTTOM - TOP)
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) -> fmt::Result {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        let line = |name: &str, rate| Line { name: name.to_owned(), points: vec![(50, rate), (100, 1.0)] };
        let drawn = svg("a < b", 100, &[line("lru & none", 0.25), line("fifo", 0.0)]);
        assert_eq!((drawn.matches("<polyline").count(), drawn.matches("<circle").count()), (2, 4));
        assert!(drawn.contains("a &lt; b") && drawn.contains("lru &amp; none"), "{drawn}");
        assert!(drawn.contains(&format!("{:.1},{:.1} {RIGHT:.1},{TOP:.1}", (LEFT + RIGHT) / 2.0, y(0.25))), "{drawn}");
        assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
    }
}
