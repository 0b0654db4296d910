//! Places on Earth as numbers of 52 bits, as Redis stores them: 26 bits of the latitude and 26 of the longitude,
//! interleaved, so that the numbers of places in a cell of the grid are neighbours. Places are of the Web Mercator
//! projection, which ends before the poles.
//!
//! Sines and cosines come from a library rather than from the system, whose last digit may differ between machines:
//! what is found is stored by every node.

use std::f64::consts::PI;

/// The range of longitudes, in degrees.
const LONGITUDES: (f64, f64) = (-180.0, 180.0);
/// The range of latitudes.
const LATITUDES: (f64, f64) = (-85.051_128_78, 85.051_128_78);
/// The range of latitudes of standard geohashes.
const STANDARD_LATITUDES: (f64, f64) = (-90.0, 90.0);
/// How many bits of each coordinate a place has.
const STEPS: u32 = 26;
/// The mean radius of the Earth in metres that Redis has.
const EARTH_RADIUS: f64 = 6_372_797.560_856;
/// Half of the Earth's circumference in metres, in the projection.
const MERCATOR_MAX: f64 = 20_037_726.37;
const ALPHABET: &[u8; 32] = b"0123456789bcdefghjkmnpqrstuvwxyz";

/// A place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) longitude: f64,
    pub(super) latitude: f64,
}

/// A cell of a grid: `steps` bits of each coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    bits: u64,
    steps: u32,
}

/// What a cell covers.
struct Area {
    longitude: (f64, f64),
    latitude: (f64, f64),
}

/// The bits of a number, moved to the even ones.
fn spread(number: u32) -> u64 {
    [
        (16, 0x0000_ffff_0000_ffff),
        (8, 0x00ff_00ff_00ff_00ff),
        (4, 0x0f0f_0f0f_0f0f_0f0f),
        (2, 0x3333_3333_3333_3333),
        (1, 0x5555_5555_5555_5555),
    ]
    .into_iter()
    .fold(u64::from(number), |bits, (shift, mask)| (bits | bits << shift) & mask)
}

/// The number whose bits are the even ones.
fn gather(bits: u64) -> u32 {
    [
        (1, 0x3333_3333_3333_3333),
        (2, 0x0f0f_0f0f_0f0f_0f0f),
        (4, 0x00ff_00ff_00ff_00ff),
        (8, 0x0000_ffff_0000_ffff),
        (16, 0x0000_0000_ffff_ffff),
    ]
    .into_iter()
    .fold(bits & 0x5555_5555_5555_5555, |bits, (shift, mask)| (bits | bits >> shift) & mask) as u32
}

impl Cell {
    fn of(place: Place, steps: u32, latitudes: (f64, f64)) -> Cell {
        let part = |value: f64, (min, max): (f64, f64)| {
            ((value - min) / (max - min) * (1u64 << steps) as f64) as u32
        };
        let (latitude, longitude) = (part(place.latitude, latitudes), part(place.longitude, LONGITUDES));
        Cell { bits: spread(latitude) | spread(longitude) << 1, steps }
    }

    fn area(self) -> Area {
        let range = |part: u32, (min, max): (f64, f64)| {
            let at = |part: u32| min + f64::from(part) / (1u64 << self.steps) as f64 * (max - min);
            (at(part), at(part.wrapping_add(1)))
        };
        Area {
            latitude: range(gather(self.bits), LATITUDES),
            longitude: range(gather(self.bits >> 1), LONGITUDES),
        }
    }

    /// The cell that is so many cells to the east and to the north; beyond an edge it is at the opposite one.
    fn moved(self, east: i32, north: i32) -> Cell {
        let mask = ((1u64 << self.steps) - 1) as u32;
        let (latitude, longitude) = (gather(self.bits), gather(self.bits >> 1));
        let longitude = longitude.wrapping_add_signed(east) & mask;
        let latitude = latitude.wrapping_add_signed(north) & mask;
        Cell { bits: spread(latitude) | spread(longitude) << 1, ..self }
    }

    /// The scores of the places in it: from the first up to, but excluding, the second.
    pub(super) fn scores(self) -> (f64, f64) {
        let shift = 2 * (STEPS - self.steps);
        ((self.bits << shift) as f64, ((self.bits + 1) << shift) as f64)
    }
}

impl Place {
    /// Whether the coordinates are of a place that has a number.
    pub(super) fn is_valid(self) -> bool {
        (LONGITUDES.0..=LONGITUDES.1).contains(&self.longitude)
            && (LATITUDES.0..=LATITUDES.1).contains(&self.latitude)
    }

    /// The number of a place.
    pub(super) fn score(self) -> u64 {
        Cell::of(self, STEPS, LATITUDES).bits
    }

    /// The place with this number: the middle of its cell.
    pub(super) fn of_score(score: f64) -> Place {
        let area = Cell { bits: score as u64, steps: STEPS }.area();
        let middle =
            |(min, max): (f64, f64), (low, high): (f64, f64)| f64::midpoint(min, max).clamp(low, high);
        Place { longitude: middle(area.longitude, LONGITUDES), latitude: middle(area.latitude, LATITUDES) }
    }

    /// The standard geohash of eleven characters, of which the last one has no bits any more.
    pub(super) fn text(self) -> [u8; 11] {
        let bits = Cell::of(self, STEPS, STANDARD_LATITUDES).bits;
        std::array::from_fn(|index| match index {
            10 => ALPHABET[0],
            index => ALPHABET[(bits >> (52 - (index + 1) * 5)) as usize & 31],
        })
    }

    /// The distance in metres on a great circle.
    pub(super) fn distance(self, other: Place) -> f64 {
        let v = libm::sin((radians(other.longitude) - radians(self.longitude)) / 2.0);
        if v == 0.0 {
            return latitude_distance(self.latitude, other.latitude);
        }
        let (here, there) = (radians(self.latitude), radians(other.latitude));
        let u = libm::sin((there - here) / 2.0);
        let a = u * u + libm::cos(here) * libm::cos(there) * v * v;
        // Of opposite places, rounding may leave a little more than 1.
        2.0 * EARTH_RADIUS * libm::asin(libm::sqrt(a).min(1.0))
    }
}

fn radians(degrees: f64) -> f64 {
    degrees * (PI / 180.0)
}

fn degrees(radians: f64) -> f64 {
    radians / (PI / 180.0)
}

fn latitude_distance(a: f64, b: f64) -> f64 {
    EARTH_RADIUS * (radians(b) - radians(a)).abs()
}

/// Where is searched, around a place; in metres.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Circle { radius: f64 },
    Box { width: f64, height: f64 },
}

impl Shape {
    /// The distance of a place from the centre, if it is in the shape.
    pub(super) fn distance_within(self, centre: Place, place: Place) -> Option<f64> {
        match self {
            Shape::Circle { radius } => Some(centre.distance(place)).filter(|distance| *distance <= radius),
            Shape::Box { width, height } => {
                let at_side = Place { longitude: centre.longitude, ..place };
                let is_in = latitude_distance(place.latitude, centre.latitude) <= height / 2.0
                    && place.distance(at_side) <= width / 2.0;
                is_in.then(|| centre.distance(place))
            }
        }
    }

    /// The cells that cover it: the one around the centre, and those of its neighbours that are needed, in the order in
    /// which Redis searches them, each once.
    pub(super) fn cells(self, centre: Place) -> Vec<Cell> {
        let (half_width, half_height, radius) = match self {
            Shape::Circle { radius } => (radius, radius, radius),
            Shape::Box { width, height } => {
                let (x, y) = (width / 2.0, height / 2.0);
                (x, y, libm::sqrt(x * x + y * y))
            }
        };
        let north_south = degrees(half_height / EARTH_RADIUS);
        // Meridians are nearer to each other at the side towards the pole.
        let nearer = if centre.latitude < 0.0 { -north_south } else { north_south };
        let east_west = degrees(half_width / EARTH_RADIUS / libm::cos(radians(centre.latitude + nearer)));
        let longitudes = (centre.longitude - east_west, centre.longitude + east_west);
        let latitudes = (centre.latitude - north_south, centre.latitude + north_south);

        let mut steps = steps_for(radius, centre.latitude);
        let mut cell = Cell::of(centre, steps, LATITUDES);
        let is_too_small = cell.moved(0, 1).area().latitude.1 < latitudes.1
            || cell.moved(0, -1).area().latitude.0 > latitudes.0
            || cell.moved(1, 0).area().longitude.1 < longitudes.1
            || cell.moved(-1, 0).area().longitude.0 > longitudes.0;
        if steps > 1 && is_too_small {
            steps -= 1;
            cell = Cell::of(centre, steps, LATITUDES);
        }
        let area = cell.area();
        let is_needed = |&(east, north): &(i32, i32)| {
            steps < 2
                || !(north < 0 && area.latitude.0 < latitudes.0
                    || north > 0 && area.latitude.1 > latitudes.1
                    || east < 0 && area.longitude.0 < longitudes.0
                    || east > 0 && area.longitude.1 > longitudes.1)
        };
        let around = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)];
        let mut cells: Vec<Cell> = Vec::new();
        for (east, north) in around.into_iter().filter(is_needed) {
            let next = cell.moved(east, north);
            if !cells.contains(&next) {
                cells.push(next);
            }
        }
        cells
    }
}

/// How many bits of each coordinate the cells have that are searched for what is within this distance.
fn steps_for(mut metres: f64, latitude: f64) -> u32 {
    if metres == 0.0 {
        return STEPS;
    }
    let mut steps = 1i32;
    while metres < MERCATOR_MAX && steps < 64 {
        metres *= 2.0;
        steps += 1;
    }
    steps -= 2;
    if !(-66.0..=66.0).contains(&latitude) {
        steps -= if (-80.0..=80.0).contains(&latitude) { 1 } else { 2 };
    }
    steps.clamp(1, STEPS as i32) as u32
}

#[cfg(test)]
mod tests {
    use super::{Place, Shape, gather, spread};

    fn random(chance: &mut fastrand::Rng) -> Place {
        Place { longitude: chance.f64() * 360.0 - 180.0, latitude: chance.f64() * 170.0 - 85.0 }
    }

    #[test]
    fn bits_are_spread_and_gathered() {
        let mut chance = fastrand::Rng::with_seed(1);
        for _ in 0..1_000 {
            let (even, odd) = (chance.u32(..), chance.u32(..));
            let bits = spread(even) | spread(odd) << 1;
            assert_eq!((gather(bits), gather(bits >> 1)), (even, odd));
            assert_eq!(bits.count_ones(), even.count_ones() + odd.count_ones());
        }
    }

    #[test]
    fn opposite_places_have_a_distance() {
        let here = Place { longitude: 10.0, latitude: -57.338971346616745 };
        let opposite = Place { longitude: -169.99999791383743, latitude: 57.33897038316351 };
        let half_round = 2.0 * super::EARTH_RADIUS * std::f64::consts::FRAC_PI_2;
        assert!((here.distance(opposite) - half_round).abs() < 1.0);
        let all = Shape::Box { width: 6e7, height: 6e7 };
        assert!(all.distance_within(here, opposite).is_some());
        let mut chance = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let place = random(&mut chance);
            let sign = if place.longitude > 0.0 { -180.0 } else { 180.0 };
            let other = Place { longitude: place.longitude + sign, latitude: -place.latitude };
            assert!(place.distance(other) <= half_round + 1.0, "{place:?}");
        }
    }

    #[test]
    fn a_place_is_found_where_its_number_says() {
        let mut chance = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let place = random(&mut chance);
            assert!(place.is_valid());
            let found = Place::of_score(place.score() as f64);
            assert!(place.distance(found) < 0.6, "{place:?} {found:?}");
            assert_eq!(found.score(), place.score());
        }
    }

    /// What is in a shape is in one of its cells.
    #[test]
    fn the_cells_cover_the_shape() {
        let mut chance = fastrand::Rng::with_seed(2);
        for _ in 0..3_000 {
            let centre = random(&mut chance);
            let size = 10f64.powf(chance.f64() * 6.0);
            let shape = match chance.bool() {
                true => Shape::Circle { radius: size },
                false => Shape::Box { width: size * 2.0 * chance.f64(), height: size },
            };
            // Redis's cells leave something out where a shape reaches beyond an edge of the map.
            let degrees = size / 111_000.0;
            if centre.latitude.abs() > 75.0 - degrees || centre.longitude.abs() > 175.0 - 5.0 * degrees {
                continue;
            }
            let cells = shape.cells(centre);
            for _ in 0..50 {
                let shift = |chance: &mut fastrand::Rng| (chance.f64() - 0.5) * 2.0 * degrees;
                let place = Place {
                    longitude: centre.longitude + shift(&mut chance) * 3.0,
                    latitude: centre.latitude + shift(&mut chance),
                };
                if shape.distance_within(centre, place).is_some() {
                    let score = place.score() as f64;
                    let is_in = cells.iter().any(|cell| (cell.scores().0..cell.scores().1).contains(&score));
                    assert!(is_in, "{centre:?} {shape:?} {place:?}");
                }
            }
        }
    }
}
