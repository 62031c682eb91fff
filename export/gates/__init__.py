"""Gates: whether what a build in fewer bits draws is as good as what FP32 draws."""
