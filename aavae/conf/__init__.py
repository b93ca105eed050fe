# The configs, installed as the package aavae.conf.
