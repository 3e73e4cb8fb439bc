//! Plots as inline SVG, each a card 360 units wide: a phone shows one beside nothing, a wide window three beside each other,
//! and the letters keep their size.
//!
//! Colours are classes that the page's style sheet defines, for light and dark. Each has a title and a description for those
//! who do not see it; the numbers stand in the table beside it.

use std::fmt::Write as _;

use super::{number, shown};

/// Width of every plot.
const WIDTH: f64 = 360.0;
/// Where the names of the rows end and the drawing begins.
const LEFT: f64 = 84.0;
/// Where the drawing ends and the values at the right begin.
const RIGHT: f64 = 292.0;
const ROW: f64 = 26.0;
const TOP: f64 = 8.0;

/// What a row of a plot shows.
pub(super) struct Row {
    /// Name of the layer.
    pub(super) name: String,
    /// What `luksctl open` would take, or plain, or another: a class of the style sheet.
    pub(super) class: &'static str,
    /// The value.
    pub(super) value: f64,
    /// From, to.
    pub(super) range: Option<(f64, f64)>,
    /// Further points, lesser to greater.
    pub(super) further: Vec<f64>,
    /// What stands at the right.
    pub(super) label: String,
}

/// Text for HTML and SVG, in elements and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in shown(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Maps values to the drawing.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    fn x(&self, value: f64) -> f64 {
        let of = |value: f64| if self.logarithmic { value.max(self.low).ln() } else { value };
        let share = (of(value) - of(self.low)) / (of(self.high) - of(self.low));
        LEFT + (RIGHT - LEFT) * share.clamp(0.0, 1.0)
    }

    /// From zero to a little above the greatest.
    fn from_zero(high: f64) -> Axis {
        Axis { low: 0.0, high: if high > 0.0 { high * 1.02 } else { 1.0 }, logarithmic: false }
    }

    /// Round numbers on it: about four.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let inside = |steps: &[f64]| -> Vec<f64> {
                let decades = (-3..=12).map(|exponent| 10_f64.powi(exponent));
                let ticks = decades.flat_map(|decade| steps.iter().map(move |step| decade * step));
                ticks.filter(|value| (self.low..=self.high).contains(value)).take(12).collect()
            };
            // As many as leave room between their numbers.
            let choices = [inside(&[1.0, 2.0, 5.0]), inside(&[1.0, 3.0]), inside(&[1.0])];
            let fits = choices.into_iter().find(|ticks| ticks.len() <= 5);
            return fits.unwrap_or_else(|| vec![self.low, self.high]);
        }
        let rough = (self.high - self.low) / 5.0;
        let unit = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0].into_iter().map(|times| times * unit).find(|step| *step >= rough).unwrap_or(10.0 * unit);
        let mut ticks = Vec::new();
        let mut at = (self.low / step).ceil() * step;
        while at <= self.high && ticks.len() < 12 {
            ticks.push(if at.abs() < step / 1e6 { 0.0 } else { at });
            at += step;
        }
        ticks
    }
}

/// The number of a tick: whole where it is.
fn tick(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { number(value) }
}

/// Bars from zero, with the quartiles as a line.
pub(super) fn bars(id: &str, title: &str, unit: &str, rows: &[Row]) -> String {
    let high = rows.iter().map(|row| row.range.map_or(row.value, |range| range.1.max(row.value))).fold(0.0, f64::max);
    let axis = Axis::from_zero(high);
    let mut svg = Drawing::new(id, title, unit, rows, &axis, tick);
    for (y, row) in svg.places(rows) {
        let (from, to) = (axis.x(0.0), axis.x(row.value));
        let _ = write!(
            svg.text,
            r#"<rect class="{}" x="{from:.1}" y="{:.1}" width="{:.1}" height="14" rx="2"/>"#,
            row.class,
            y - 7.0,
            (to - from).max(1.0)
        );
        svg.whisker(&axis, y, row.range);
    }
    svg.end()
}

/// Points on a logarithmic axis, from the first to the last joined by a line.
pub(super) fn points(id: &str, title: &str, unit: &str, rows: &[Row]) -> String {
    let all = || rows.iter().flat_map(|row| std::iter::once(row.value).chain(row.further.iter().copied()));
    let (low, high) = (all().fold(f64::INFINITY, f64::min).max(1e-3), all().fold(1e-3, f64::max));
    let axis = Axis { low: low * 0.8, high: high.max(low * 2.0) * 1.2, logarithmic: true };
    let mut svg = Drawing::new(id, title, unit, rows, &axis, tick);
    for (y, row) in svg.places(rows) {
        let (from, to) = (axis.x(row.value), axis.x(row.further.last().copied().unwrap_or(row.value)));
        let _ = write!(svg.text, r#"<line class="join" x1="{from:.1}" y1="{y:.1}" x2="{to:.1}" y2="{y:.1}"/>"#);
        let _ = write!(svg.text, r#"<circle class="{}" cx="{from:.1}" cy="{y:.1}" r="5"/>"#, row.class);
        for (nth, value) in row.further.iter().enumerate() {
            let radius = if nth + 1 == row.further.len() { 2.5 } else { 3.5 };
            let x = axis.x(*value);
            let _ = write!(svg.text, r#"<circle class="hollow {}" cx="{x:.1}" cy="{y:.1}" r="{radius}"/>"#, row.class);
        }
    }
    svg.end()
}

/// Values with their intervals, zero and the bounds as lines.
pub(super) fn intervals(id: &str, title: &str, unit: &str, rows: &[Row], bounds: &[f64]) -> String {
    let ends = rows.iter().flat_map(|row| {
        [row.value, row.range.map_or(row.value, |range| range.0), row.range.map_or(row.value, |range| range.1)]
    });
    let all: Vec<f64> = ends.chain(bounds.iter().copied()).chain([0.0]).collect();
    // One wild interval must not press all others together.
    let (low, high) =
        (all.iter().copied().fold(0.0, f64::min).max(-100.0), all.iter().copied().fold(1.0, f64::max).min(100.0));
    let room = (high - low) * 0.05;
    let axis = Axis { low: low - room, high: high + room, logarithmic: false };
    let mut svg = Drawing::new(id, title, unit, rows, &axis, |value| format!("{value:.0}"));
    for bound in bounds {
        let x = axis.x(*bound);
        let _ = write!(svg.text, r#"<line class="bound" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{:.1}"/>"#, svg.floor);
    }
    let zero = axis.x(0.0);
    let _ = write!(svg.text, r#"<line class="zero" x1="{zero:.1}" y1="{TOP}" x2="{zero:.1}" y2="{:.1}"/>"#, svg.floor);
    for (y, row) in svg.places(rows) {
        svg.whisker(&axis, y, row.range);
        let _ = write!(svg.text, r#"<circle class="{}" cx="{:.1}" cy="{y:.1}" r="5"/>"#, row.class, axis.x(row.value));
    }
    svg.end()
}

/// An SVG being written: names at the left, values at the right, the grid and its numbers.
struct Drawing {
    text: String,
    floor: f64,
}

impl Drawing {
    fn new(id: &str, title: &str, unit: &str, rows: &[Row], axis: &Axis, tick: fn(f64) -> String) -> Drawing {
        #[allow(clippy::cast_precision_loss)] // some rows
        let floor = TOP + ROW * rows.len() as f64;
        let height = floor + 34.0;
        let values: Vec<String> = rows.iter().map(|row| format!("{} {}", row.name, row.label)).collect();
        let mut text = format!(
            r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{id}-t {id}-d"><title id="{id}-t">{}</title><desc id="{id}-d">{} in {}</desc>"#,
            escape(title),
            escape(&values.join("; ")),
            escape(unit)
        );
        for value in axis.ticks() {
            let x = axis.x(value);
            let _ = write!(
                text,
                r#"<line class="grid" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{floor}"/><text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                floor + 13.0,
                escape(&tick(value))
            );
        }
        let _ = write!(
            text,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            f64::midpoint(LEFT, RIGHT),
            floor + 28.0,
            escape(unit)
        );
        let drawing = Drawing { text, floor };
        drawing.with_names(rows)
    }

    fn with_names(mut self, rows: &[Row]) -> Drawing {
        for (y, row) in self.places(rows) {
            let name: String = row.name.chars().take(12).collect();
            let _ = write!(
                self.text,
                r#"<text class="name" x="{:.1}" y="{:.1}" text-anchor="end">{}</text><text class="value" x="{WIDTH}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 6.0,
                y + 4.0,
                escape(&name),
                y + 4.0,
                escape(&row.label)
            );
        }
        self
    }

    /// The middle of each row.
    #[allow(clippy::cast_precision_loss)] // some rows
    fn places<'a>(&self, rows: &'a [Row]) -> Vec<(f64, &'a Row)> {
        rows.iter().enumerate().map(|(nth, row)| (TOP + ROW * (nth as f64 + 0.5), row)).collect()
    }

    fn whisker(&mut self, axis: &Axis, y: f64, range: Option<(f64, f64)>) {
        let Some((low, high)) = range else { return };
        let (from, to) = (axis.x(low), axis.x(high));
        let (above, below) = (y - 4.0, y + 4.0);
        let _ = write!(
            self.text,
            r#"<path class="whisker" d="M{from:.1} {y:.1}H{to:.1}M{from:.1} {above:.1}V{below:.1}M{to:.1} {above:.1}V{below:.1}"/>"#
        );
    }

    fn end(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, range: Option<(f64, f64)>) -> Row {
        Row { name: "plain".into(), class: "plain", value, range, further: vec![value * 3.0], label: "label".into() }
    }

    #[test]
    fn everything_from_outside_is_escaped() {
        assert_eq!(
            escape("<a href=\"x\" title='y'>&\u{0}</a>"),
            "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;\u{fffd}&lt;/a&gt;"
        );
        let hostile = Row { name: "<script>".into(), label: "\"><b>".into(), ..row(1.0, None) };
        let svg = bars("p", "</title><script>", "<u>", &[hostile]);
        assert!(!svg.contains("<script>") && !svg.contains("<b>") && !svg.contains("<u>"), "{svg}");
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        let svg = bars("p", "t", "MB/s", &[row(100.0, None), row(50.0, Some((40.0, 60.0)))]);
        let widths: Vec<f64> = svg
            .split("<rect")
            .skip(1)
            .map(|part| part.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 2);
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01, "{widths:?}");
        assert_eq!(svg.matches("whisker").count(), 1);
    }

    #[test]
    fn no_number_is_drawn_outside_or_is_none() {
        let odd = [row(0.0, None), row(1e300, Some((-1e300, 1e300))), row(-5.0, Some((-9.0, 1.0)))];
        for svg in
            [bars("p", "t", "u", &odd), points("p", "t", "u", &odd), intervals("p", "t", "u", &odd, &[5.0, 15.0])]
        {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            for x in svg.split("cx=\"").skip(1) {
                let x: f64 = x.split('"').next().unwrap().parse().unwrap();
                assert!((LEFT..=RIGHT).contains(&x), "{x}");
            }
        }
        assert!(points("p", "t", "u", &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(Axis { low: 0.0, high: 950.0, logarithmic: false }.ticks(), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(Axis { low: -3.0, high: 17.0, logarithmic: false }.ticks(), [0.0, 5.0, 10.0, 15.0]);
        assert_eq!(
            Axis { low: 50.0, high: 20_000.0, logarithmic: true }.ticks(),
            [100.0, 300.0, 1000.0, 3000.0, 10_000.0]
        );
        assert_eq!(Axis { low: 90.0, high: 600.0, logarithmic: true }.ticks(), [100.0, 200.0, 500.0]);
        assert_eq!(Axis { low: 0.1, high: 1e9, logarithmic: true }.ticks(), [0.1, 1e9], "too many for any choice");
        assert_eq!([0.0, 20.0, 0.5, 1500.0].map(tick), ["0", "20", "0.50", "1500"]);
    }
}
