"""M2 on your own images, most of them without a label: python examples/own_data.py

The data here are scikit-learn's 8×8 digits 0…6, the higher ones rarer, 70 of them labeled. Change the counts
and `load`; the rest adapts to any image shape (C, H, W) and any number of classes.
"""

import torch
from sklearn.datasets import load_digits

from vae import DataSet, M2Recipe, SemiSupervisedBatches, binarize, build_m2, hide_labels, train_m2
from vae import load as load_saved
from vae.conv import ConvNet, DeconvNet
from vae.evaluation import error_rate
from vae.networks import Classifier
from vae.recipes import LabelsRecipe, train_on_labels

NUM_LABELED, NUM_VALID, NUM_TEST = 70, 100, 200  # at least 35 labeled: so many are in a batch


def load(generator):
    """Return images (N, C, H, W), floats in [0, 1], and labels (N,) in 0…K − 1, or −1 where there is none."""
    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8) / 16
    kept = (labels < 7) & (torch.rand(len(labels), generator=generator) > labels / 10)
    return images[kept], labels[kept]


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
images, labels = load(generator)
order = torch.randperm(len(images), generator=generator)
order = order[(labels[order] < 0).int().argsort(stable=True)]  # those with a label first: only they can be held out
valid, test, train = order.split([NUM_VALID, NUM_TEST, len(order) - NUM_VALID - NUM_TEST])
data = DataSet("digits", int(labels.max()) + 1, *(t[part] for part in (train, valid, test) for t in (images, labels)))

y = hide_labels(data.train_labels, NUM_LABELED, generator)  # or y = data.train_labels, if your labels are few already
batches = SemiSupervisedBatches(data.train_images, y, 35, 50, generator, binarize)
baseline = Classifier(data.x_shape, data.num_classes, (128,), network=ConvNet)
train_on_labels(baseline, batches, LabelsRecipe(epochs=30))
m2 = build_m2(data.x_shape, data.num_classes, 8, (128,), network=ConvNet, decoder_network=DeconvNet)
train_m2(m2, batches, M2Recipe(label_epochs=5, frozen_epochs=20, unfrozen_epochs=80, lr=3e-3))
for part in ("valid", "test"):  # choose settings by the first, report the second
    errors = [error_rate(classify, *data.part(part)) for classify in (baseline.classify, m2.classify)]
    print("{} error: labels only {:.1f} %, M2 {:.1f} %".format(part, *errors))

m2.save("own_data.safetensors")
m2 = load_saved("own_data.safetensors")  # its architecture comes with it
print("new images are of the classes", m2.classify(data.test_images[:9]).tolist())
print("five samples of the last class:", tuple(m2.sample(5, label=data.num_classes - 1, mean=True).shape))
