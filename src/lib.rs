//! Contrastive learning with hard negative mixing (MoCHi).
