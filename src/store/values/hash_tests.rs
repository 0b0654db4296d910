//! Tests hashes against a vector of pairs.

use crate::store::{Chance, Digest, Dirty, Hash, Hashing, Kind, Pages, Typed, codec::Input};

fn digest_of(hash: &Hash) -> u128 {
    let mut digest = Digest::default();
    hash.digest(&mut digest);
    digest.finish()
}

fn sorted(hash: &Hash) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs: Vec<_> = hash.iter().map(|(field, value)| (field.to_vec(), value.to_vec())).collect();
    pairs.sort();
    pairs
}

/// The hash loaded from its head and all its pages.
fn load(hash: &Hash) -> Hash {
    let mut head = Vec::new();
    hash.encode_head(&mut head);
    let mut input = Input::new(&head);
    let mut loaded = Hash::decode_head(&mut input, Hashing::PLAIN).unwrap();
    input.end().unwrap();
    for part in hash.parts() {
        loaded.load_part(part, &hash.encode_part(part).unwrap()).unwrap();
    }
    loaded.loaded().unwrap();
    loaded
}

#[test]
fn hashes_do_what_pairs_do_and_their_pages_hold_them() {
    for seed in 0..8 {
        println!("seed {seed}");
        let (mut hash, mut model, mut chance) = (Hash::default(), Vec::new(), Chance::new(seed));
        let (mut dirty, mut next) = (Dirty::default(), 1);
        // Some stay small, some get many fields, some a long value.
        let fields = [20, 100, 400, 2_000][seed as usize % 4];
        let long = if seed < 4 { 0 } else { 1 };
        for step in 0..4_000 {
            let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
            let field = format!("field:{}", chance.below(fields)).into_bytes();
            let at = model.iter().position(|(present, _): &(Vec<u8>, Vec<u8>)| *present == field);
            assert_eq!(hash.get(&field), at.map(|at| &model[at].1[..]));
            if chance.below(3) > 0 {
                let len = if chance.below(500) < long { 3_000 } else { chance.below(65) };
                let value = vec![b'v'; len];
                assert_eq!(hash.set(&field, &value, pages), at.is_none());
                match at {
                    Some(at) => model[at].1 = value,
                    None => model.push((field, value)),
                }
            } else {
                assert_eq!(hash.remove(&field, pages), at.is_some());
                at.map(|at| model.remove(at));
            }
            assert_eq!(hash.len(), model.len());
            if step % 100 > 0 || model.is_empty() {
                continue;
            }
            if hash.object().is_none() {
                let pairs = model.iter().map(|(field, value)| (&field[..], &value[..]));
                assert!(hash.iter().eq(pairs), "a small hash keeps the order");
            }
            let mut expected = model.clone();
            expected.sort();
            assert_eq!(sorted(&hash), expected);
            let loaded = load(&hash);
            assert_eq!(digest_of(&loaded), digest_of(&hash));
            assert_eq!((loaded.head_bytes(), loaded.encoding()), (hash.head_bytes(), hash.encoding()));
            assert!(loaded.iter().eq(hash.iter()));
            let copy = hash.copy(&mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN));
            let copy = Hash::of(&copy).unwrap();
            assert_eq!(digest_of(copy), digest_of(&hash));
            assert!(hash.object().is_none() || copy.object() != hash.object());
            let (field, value) = hash.choose(&mut chance).unwrap();
            assert_eq!(hash.get(field), Some(value));
        }
        let is_large = fields > 128 || long > 0;
        assert_eq!(hash.encoding(), if is_large { "hashtable" } else { "listpack" });
    }
}

#[test]
fn packed_and_paged_hashes_of_the_same_content_have_equal_digests() {
    let (mut packed, mut paged) = (Hash::default(), Hash::default());
    let (mut dirty, mut next) = (Dirty::default(), 1);
    let pages = &mut Pages::new(&mut dirty, &mut next, Hashing::PLAIN);
    for number in 0..100 {
        let (field, value) = (format!("f{number}"), format!("v{number}"));
        packed.set(field.as_bytes(), value.as_bytes(), pages);
        paged.set(field.as_bytes(), value.as_bytes(), pages);
    }
    paged.set(b"long", &[0; 65], pages);
    paged.remove(b"long", pages);
    assert!(packed.object().is_none() && paged.object().is_some());
    assert_eq!(digest_of(&packed), digest_of(&paged));
}
