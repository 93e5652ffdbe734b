"""What several tests need: packages to install, wrong readouts and backbones, damaged bundles, C++ builds."""
