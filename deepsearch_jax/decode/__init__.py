"""The decode engine: token ids in, token ids and log-probs out; knows neither text nor trees."""

from deepsearch_jax.decode.engine import decode_children
from deepsearch_jax.decode.lots import decode_in_lots
from deepsearch_jax.decode.pages import KVPages, init_pages
from deepsearch_jax.decode.pool import assign_pages
from deepsearch_jax.decode.prefill import prefill
from deepsearch_jax.decode.request import DecodeRequest
from deepsearch_jax.decode.sampling import Sample, cut_tail, sample_token
from deepsearch_jax.decode.settings import DecodeSettings
from deepsearch_jax.decode.siblings import Siblings, make_siblings
from deepsearch_jax.decode.stops import StopTable, build_stop_table

__all__ = [
    "DecodeRequest",
    "DecodeSettings",
    "KVPages",
    "Sample",
    "Siblings",
    "StopTable",
    "assign_pages",
    "build_stop_table",
    "cut_tail",
    "decode_children",
    "decode_in_lots",
    "init_pages",
    "make_siblings",
    "prefill",
    "sample_token",
]
