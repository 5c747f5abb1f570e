"""Topology of sublevel sets from heights and passes alone: merge trees and their layout."""

from thalweg.topology.layout import Layout as Layout
from thalweg.topology.layout import Line as Line
from thalweg.topology.layout import layout as layout
from thalweg.topology.merge_tree import Edge as Edge
from thalweg.topology.merge_tree import Leaf as Leaf
from thalweg.topology.merge_tree import Merge as Merge
from thalweg.topology.merge_tree import MergeTree as MergeTree
from thalweg.topology.merge_tree import Pair as Pair
from thalweg.topology.merge_tree import merge_tree as merge_tree
