//! run_in_rust BUNDLE [DIGEST]: what run_in_c does, from Rust: runs the bundle on ones, for two samples, and prints its
//! description and its outputs.
use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_void};
use std::{env, process, ptr, slice};

const FLOAT32: i32 = 1;

#[repr(C)]
struct Tensor {
    name: *const c_char,
    dtype: i32,
    rank: u32,
    sizes: *const i64,
    strides: *const i64,
    data: *const c_void,
}

// regplug/regplug.h
#[link(name = "regplug")]
extern "C" {
    fn regplug_last_error() -> *const c_char;
    fn regplug_open(directory: *const c_char, digest: *const c_char, flags: u32) -> *mut c_void;
    fn regplug_close(bundle: *mut c_void);
    fn regplug_describe(bundle: *const c_void) -> *const c_char;
    fn regplug_run(bundle: *const c_void, inputs: *const Tensor, count: usize) -> *mut c_void;
    fn regplug_num_outputs(outputs: *const c_void) -> usize;
    fn regplug_output(outputs: *const c_void, index: usize, output: *mut Tensor) -> i32;
    fn regplug_free_outputs(outputs: *mut c_void);
}

fn text(pointer: *const c_char) -> String {
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn last_error() -> String {
    text(unsafe { regplug_last_error() })
}

struct Bundle(*mut c_void);

unsafe impl Send for Bundle {}
unsafe impl Sync for Bundle {}

impl Bundle {
    fn open(directory: Option<&str>, digest: Option<&str>) -> Result<Bundle, String> {
        let words: Vec<Option<CString>> =
            [directory, digest].iter().map(|word| word.map(|word| CString::new(word).unwrap())).collect();
        let pointer = |i: usize| words[i].as_ref().map_or(ptr::null(), |word| word.as_ptr());
        let bundle = unsafe { regplug_open(pointer(0), pointer(1), 0) };
        if bundle.is_null() { Err(last_error()) } else { Ok(Bundle(bundle)) }
    }

    fn describe(&self) -> String {
        text(unsafe { regplug_describe(self.0) })
    }

    /// Each output's name and its items, in C order.
    fn run(&self, sizes: &[i64], data: &[f32]) -> Result<Vec<(String, Vec<f32>)>, String> {
        let input = Tensor {
            name: ptr::null(),
            dtype: FLOAT32,
            rank: sizes.len() as u32,
            sizes: sizes.as_ptr(),
            strides: ptr::null(),
            data: data.as_ptr().cast(),
        };
        let outputs = unsafe { regplug_run(self.0, &input, 1) };
        if outputs.is_null() {
            return Err(last_error());
        }
        let mut found = Vec::new();
        for index in 0..unsafe { regplug_num_outputs(outputs) } {
            let mut one = Tensor { ..input };
            if unsafe { regplug_output(outputs, index, &mut one) } != 0 {
                return Err(last_error());
            }
            let sizes = unsafe { slice::from_raw_parts(one.sizes, one.rank as usize) };
            let items = sizes.iter().product::<i64>() as usize;
            found.push((text(one.name), unsafe { slice::from_raw_parts(one.data.cast(), items) }.to_vec()));
        }
        unsafe { regplug_free_outputs(outputs) };
        Ok(found)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        unsafe { regplug_close(self.0) }
    }
}

/// The sizes of the first shape in a description: ["B",4,24]. The sizes "B" and "T" become 2 and 9.
fn first_shape(description: &str) -> Vec<i64> {
    let shape = description.split("\"shape\":[").nth(1).unwrap().split(']').next().unwrap();
    let size = |word: &str| match word {
        "\"B\"" => 2,
        "\"T\"" => 9,
        number => number.parse().unwrap(),
    };
    shape.split(',').map(size).collect()
}

fn run() -> Result<(), String> {
    let words: Vec<String> = env::args().skip(1).collect();
    let bundle = Bundle::open(words.get(0).map(String::as_str), words.get(1).map(String::as_str))?;
    println!("{}", bundle.describe());
    let sizes = first_shape(&bundle.describe());
    let ones = vec![1.0; sizes.iter().product::<i64>() as usize];
    for (name, items) in bundle.run(&sizes, &ones)? {
        let numbers: Vec<String> = items.iter().map(f32::to_string).collect();
        println!("{} {}", name, numbers.join(" "));
    }
    Ok(())
}

fn main() {
    if let Err(reason) = run() {
        println!("{}", reason);
        process::exit(1);
    }
}
