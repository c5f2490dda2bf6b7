"""The VAE of Kingma & Welling 2013 (M1) and the semi-supervised VAE of Kingma et al. 2014 (M2, M1+M2) in PyTorch.

Start with `vae.objectives`: the theory of both papers on one screen.
"""

from vae.data import Batches, DataSet, SemiSupervisedBatches, binarize, hide_labels
from vae.datasets import load_fashion_mnist, load_mnist
from vae.models import VAE, AutoEncoder, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.recipes import M1M2_RECIPE, M1Recipe, M2Recipe, build_m1, build_m1m2, build_m2, train_m1, train_m2
from vae.saving import load, load_pretrained
from vae.training import Recipe, fit

__version__ = "1.0.0"
