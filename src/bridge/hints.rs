//! Python types that only the stubs know: what a future resolves with, and what an argument is to be.

use std::convert::Infallible;
use std::marker::PhantomData;

#[cfg(feature = "stubs")]
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::PyDict;
#[cfg(feature = "stubs")]
use pyo3::{type_hint_identifier, type_hint_subscript, type_hint_union};

/// An `asyncio.Future` that resolves with a `T`.
pub struct FutureOf<'py, T>(Bound<'py, PyAny>, PhantomData<fn() -> T>);

/// Python's `None`, as something to resolve with.
pub struct Nothing;

impl<'py, T> From<Bound<'py, PyAny>> for FutureOf<'py, T> {
    fn from(future: Bound<'py, PyAny>) -> Self {
        Self(future, PhantomData)
    }
}

impl<'py, T: IntoPyObject<'py>> IntoPyObject<'py> for FutureOf<'py, T> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = Infallible;

    #[cfg(feature = "stubs")]
    const OUTPUT_TYPE: PyStaticExpr = type_hint_subscript!(type_hint_identifier!("asyncio", "Future"), T::OUTPUT_TYPE);

    fn into_pyobject(self, _: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(self.0)
    }
}

impl<'py> IntoPyObject<'py> for Nothing {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = Infallible;

    #[cfg(feature = "stubs")]
    const OUTPUT_TYPE: PyStaticExpr = PyStaticExpr::Constant { value: pyo3::inspect::PyStaticConstant::None };

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(py.None().into_bound(py))
    }
}

/// A dict of figures by their names.
pub struct Figures<'py>(pub Bound<'py, PyDict>);

impl<'py> IntoPyObject<'py> for Figures<'py> {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = Infallible;

    #[cfg(feature = "stubs")]
    const OUTPUT_TYPE: PyStaticExpr = type_hint_subscript!(
        type_hint_identifier!("builtins", "dict"),
        type_hint_identifier!("builtins", "str"),
        type_hint_identifier!("typing", "Any")
    );

    fn into_pyobject(self, _: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(self.0)
    }
}

/// Any object, of which the stubs say `type`.
macro_rules! hinted {
    ($(#[$doc:meta])* $name:ident: $hint:expr) => {
        $(#[$doc])*
        pub struct $name<'a, 'py>(pub Borrowed<'a, 'py, PyAny>);

        impl<'a, 'py> FromPyObject<'a, 'py> for $name<'a, 'py> {
            type Error = Infallible;

            #[cfg(feature = "stubs")]
            const INPUT_TYPE: PyStaticExpr = $hint;

            fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Self::Error> {
                Ok(Self(object))
            }
        }
    };
}

#[cfg(feature = "stubs")]
const DATA: PyStaticExpr = type_hint_union!(
    type_hint_identifier!("builtins", "bytes"),
    type_hint_identifier!("builtins", "bytearray"),
    type_hint_identifier!("builtins", "memoryview")
);

hinted! {
    /// An event loop.
    EventLoop: type_hint_identifier!("asyncio", "AbstractEventLoop")
}
hinted! {
    /// What can be proposed.
    Data: DATA
}
hinted! {
    /// A chunk of a snapshot.
    Chunk: type_hint_identifier!("builtins", "bytes")
}
hinted! {
    /// Several of what can be proposed.
    Items: type_hint_subscript!(type_hint_identifier!("collections.abc", "Iterable"), DATA)
}
