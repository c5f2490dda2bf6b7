"""Your own rows, few of them with a label: python examples/few_labels.py

First a table with gaps and a column of text, then photos. None, NaN or −1 says that a row has no label. The extra
`experiments` brings what it needs. Few `updates` are for a quick look.
"""

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_sample_images, load_wine
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from vae.estimator import M2Classifier

rng = np.random.RandomState(0)
wine = load_wine(as_frame=True)
table, kinds = wine.data, np.array(["Barolo", "Grignolino", "Barbera"])[wine.target]
table["colour"] = pd.cut(table.pop("hue"), 3, labels=["brick", "ruby", "purple"]).astype(str)  # text
table = table.mask(rng.rand(*table.shape) < 0.05)  # one value in twenty is missing
labels = np.where(rng.rand(len(table)) < 0.15, kinds, None)

numbers, text = make_column_selector(dtype_include="number"), make_column_selector(dtype_exclude="number")
columns = make_column_transformer(
    (SimpleImputer(), numbers), (OneHotEncoder(handle_unknown="ignore", sparse_output=False), text)
)
model = make_pipeline(columns, M2Classifier(updates=200, random_state=0)).fit(table, labels)
print(model[-1].report_)
unknown = pd.isna(labels)
print(f"wrong on the {unknown.sum()} rows without a label: {(model.predict(table) != kinds)[unknown].mean():.1%}\n")

photos = [extract_patches_2d(photo, (16, 16), max_patches=200, random_state=0) for photo in load_sample_images().images]
X, subjects = np.concatenate(photos), np.repeat(["temple", "flower"], 200)  # uint8 (400, 16, 16, 3)
labels = np.where(rng.rand(400) < 0.2, subjects, None)
model = M2Classifier(updates=80, random_state=0).fit(X, labels)
print(model.report_)
print("a patch of each:", model.sample(1, "temple").shape, model.sample(1, "flower").shape)
model.save("patches.safetensors")
print("from the file:", M2Classifier.load("patches.safetensors").predict(X[:3]))
