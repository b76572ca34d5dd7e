// Coefficients of the elementary functions. Generated: edit tools/fit_coefficients.py instead.
//
//     python tools/fit_coefficients.py > csrc/math/coefficients.h
//
// Lowest power first, for Horner's rule in fused multiply-adds. Above each set: the function as it
// is evaluated; the interval; the largest relative error of the approximation in exact arithmetic;
// the largest error found in the arithmetic of the format, in units in the last place of the true
// value, for exact arguments. All sets are minimax fits of the relative error, but for those of
// Wichura 1988 (Algorithm AS 241, PPND16).
#pragma once

#include "../base/platform.h"

// clang-format off: one coefficient a line
namespace torchinit::coefficients {

// log(1 + f) = fma(f f, LogF32(f), f)
// f = m - 1, m in [2/3, 4/3]
// relative error 2^-25.14; evaluated, 1.05 ulp.
struct LogF32 {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        -0x1.ffffd4p-2f,
        0x1.5554fap-2f,
        -0x1.00148cp-2f,
        0x1.99d438p-3f,
        -0x1.50338ap-3f,
        0x1.1ea28ap-3f,
        -0x1.3b21fcp-3f,
        0x1.1f40e4p-3f,
    };
    return c[k];
  }
};

// sin(pi x / 4) = x SinF32(z), z = x x
// x in [-1, 1]
// relative error 2^-25.02; evaluated, 1.58 ulp.
struct SinF32 {
  static constexpr int degree = 3;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1.921fb6p-1f,
        -0x1.4abbc4p-4f,
        0x1.465e82p-9f,
        -0x1.2d9306p-15f,
    };
    return c[k];
  }
};

// cos(pi x / 4) = fma(z, CosF32(z), 1), z = x x
// x in [-1, 1]
// relative error 2^-28.95; evaluated, 0.87 ulp.
struct CosF32 {
  static constexpr int degree = 3;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        -0x1.3bd3ccp-2f,
        0x1.03c1d6p-6f,
        -0x1.55c648p-12f,
        0x1.d9d50ap-19f,
    };
    return c[k];
  }
};

// Phi^-1(1/2 + q) = fma(q, 3, q (P(d) / Q(d))), d = fma(-q, q, 1/4)
// q in [-0.4773, 0.4773]; in d, not q q, all terms of Q are positive
// relative error 2^-23.77; evaluated, 2.15 ulp.
struct InverseNormalWithin2F32P {
  static constexpr int degree = 4;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1.9c63fcp+1f,
        0x1.6c07b4p+8f,
        0x1.39da3cp+11f,
        -0x1.22da8ep+15f,
        -0x1.53bc58p+16f,
    };
    return c[k];
  }
};
struct InverseNormalWithin2F32Q {
  static constexpr int degree = 4;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1p+0f,
        0x1.cbbb82p+7f,
        0x1.c48b8cp+12f,
        0x1.587858p+15f,
        0x1.3d449cp+15f,
    };
    return c[k];
  }
};

// Phi^-1(1/2 + q) = fma(q, 3, q (P(d) / Q(d))), d = fma(-q, q, 1/4)
// q in [-0.49866, 0.49866]; in d, not q q, all terms of Q are positive
// relative error 2^-23.91; evaluated, 2.16 ulp.
struct InverseNormalWithin3F32P {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1.2d19c8p+2f,
        0x1.98560ep+13f,
        0x1.43a624p+22f,
        0x1.a8e0cp+28f,
        0x1.6b3492p+32f,
        -0x1.564316p+35f,
        -0x1.23fd66p+38f,
        -0x1.1ceb72p+35f,
    };
    return c[k];
  }
};
struct InverseNormalWithin3F32Q {
  static constexpr int degree = 6;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1p+0f,
        0x1.e383p+11f,
        0x1.0c13b6p+21f,
        0x1.19223cp+28f,
        0x1.3cb4b4p+33f,
        0x1.721686p+36f,
        0x1.537a96p+37f,
    };
    return c[k];
  }
};

// -Phi^-1(p) = fma(r, 1.5, P(r) / Q(r)), r = sqrt(-log(p))
// r in [2.56, 9.36], p in [1e-38, 0.00137]
// relative error 2^-23.68; evaluated, 2.15 ulp.
struct InverseNormalTailF32P {
  static constexpr int degree = 3;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        -0x1.34001ep+1f,
        -0x1.32fc94p+0f,
        -0x1.6f57b4p-3f,
        -0x1.0d7592p-5f,
    };
    return c[k];
  }
};
struct InverseNormalTailF32Q {
  static constexpr int degree = 2;
  TORCHINIT_CONSTEXPR float at(int k) {
    constexpr float c[] = {
        0x1p+0f,
        0x1.e7dfc2p+0f,
        0x1.8b86d8p-2f,
    };
    return c[k];
  }
};

// log(1 + f) = fma(s, 2, (s z) LogF64(z)), s = f / (f + 2), z = s s
// f = m - 1, m in [2/3, 4/3]
// relative error 2^-55.88; evaluated, 2.00 ulp.
struct LogF64 {
  static constexpr int degree = 6;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1.5555555555773p-1,
        0x1.99999998f1754p-2,
        0x1.249249b1afd1bp-2,
        0x1.c71c01a7d426ep-3,
        0x1.7474d8ade18bdp-3,
        0x1.3853939ef1b03p-3,
        0x1.3ab8bff7ebd26p-3,
    };
    return c[k];
  }
};

// sin(pi x / 4) = x SinF64(z), z = x x
// x in [-1, 1]
// relative error 2^-54.16; evaluated, 1.49 ulp.
struct SinF64 {
  static constexpr int degree = 6;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1.921fb54442d18p-1,
        -0x1.4abbce625be41p-4,
        0x1.466bc677587p-9,
        -0x1.32d2cce2d535dp-15,
        0x1.50782fca388c2p-22,
        -0x1.e30063a007f81p-30,
        0x1.e3eed5c4ea37bp-38,
    };
    return c[k];
  }
};

// cos(pi x / 4) = fma(z, CosF64(z), 1), z = x x
// x in [-1, 1]
// relative error 2^-55.28; evaluated, 0.98 ulp.
struct CosF64 {
  static constexpr int degree = 6;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        -0x1.3bd3cc9be45dep-2,
        0x1.03c1f081b5aaep-6,
        -0x1.55d3c7e3c928p-12,
        0x1.e1f5068367b1cp-19,
        -0x1.a6d1ec7e0b66fp-26,
        0x1.f9cc40ac97c12p-34,
        -0x1.b263c3462dc8fp-42,
    };
    return c[k];
  }
};

// Phi^-1(1/2 + q) = (q P(d)) / Q(d), d = fma(-q, q, 0.180625)
// q in [-0.425, 0.425]
// relative error 2^-52.93; evaluated, 4.49 ulp. Wichura's.
struct InverseNormalCentreF64P {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1.b18d91e9eef75p+1,
        0x1.0a4888b1a436ep+7,
        0x1.ece5d2213c0ccp+10,
        0x1.ad1d8cd4ee71dp+13,
        0x1.66c3e869b752ap+15,
        0x1.06c1c55b78f2p+16,
        0x1.052d26b2e45e4p+15,
        0x1.39a296f7d925ep+11,
    };
    return c[k];
  }
};
struct InverseNormalCentreF64Q {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1p+0,
        0x1.5281b386e1ab5p+5,
        0x1.5797efdc8b3f7p+9,
        0x1.512322e75c89fp+12,
        0x1.4b772d5d65266p+14,
        0x1.3317caa64f4bep+15,
        0x1.c0e457cb1ae76p+14,
        0x1.46a7eca984b69p+12,
    };
    return c[k];
  }
};

// -Phi^-1(p) = P(t) / Q(t), t = r - 1.6, r = sqrt(-log(p))
// r in [1.6, 5]
// relative error 2^-52.30; evaluated, 3.78 ulp. Wichura's.
struct InverseNormalMiddleF64P {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1.6c665fde9526ap+0,
        0x1.2857748cab19bp+2,
        0x1.713f71462256ap+2,
        0x1.d2ecb1a3d02c4p+1,
        0x1.453cc085375b2p+0,
        0x1.ef2abb9b85c37p-3,
        0x1.744eb6c45ec67p-6,
        0x1.9615ac0b7ace9p-11,
    };
    return c[k];
  }
};
struct InverseNormalMiddleF64Q {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1p+0,
        0x1.06cefbb46a449p+1,
        0x1.ad278e6526633p+0,
        0x1.61292f23385c9p-1,
        0x1.2f5123394f04p-3,
        0x1.f207a7eab17bfp-7,
        0x1.1f18cbfdf2728p-11,
        0x1.20d3f686439e4p-30,
    };
    return c[k];
  }
};

// -Phi^-1(p) = P(t) / Q(t), t = r - 5, r = sqrt(-log(p))
// r in [5, 27]
// relative error 2^-53.24; evaluated, 5.15 ulp. Wichura's.
struct InverseNormalFarF64P {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1.aa1b1c13ee526p+2,
        0x1.5daea6e875003p+2,
        0x1.c8ea6461fa445p+0,
        0x1.2fad9315255cfp-2,
        0x1.b2b41193b4ee7p-6,
        0x1.45c1908425345p-10,
        0x1.c6ec6cc59e02ap-16,
        0x1.afb74d693bf93p-23,
    };
    return c[k];
  }
};
struct InverseNormalFarF64Q {
  static constexpr int degree = 7;
  TORCHINIT_CONSTEXPR double at(int k) {
    constexpr double c[] = {
        0x1p+0,
        0x1.331d34fc7d77fp-1,
        0x1.186eb183443fbp-3,
        0x1.e76f93215462ap-7,
        0x1.9c8bc979dc5d7p-11,
        0x1.35c2c496374bfp-16,
        0x1.31446f740b9ep-23,
        0x1.269bff1f8c19p-49,
    };
    return c[k];
  }
};

}  // namespace torchinit::coefficients
